//! Restarts, crashes, devices that go and come back, and leaving nothing behind.
//! The daemon under test is this test program started again, so that it can be killed.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod lab;

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use aya::programs::{SchedClassifier, TcAttachType};
use freshet_ebpf::{
    Accounting, Attachment, Class, Classes, Epoch, KernelError, Opened, Options, Source, cleanup,
    drop_capabilities,
};
use lab::{End, Lab, download, eventually, listen};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

fn options(pin: Option<&Path>, attachment: Attachment) -> Options {
    Options {
        interfaces: lab::DEVICE.parse().unwrap(),
        pin: pin.map(Path::to_owned),
        attachment: Some(attachment),
        ..Options::default()
    }
}

fn open(lab: &Lab, options: Options) -> (Box<dyn Accounting>, Classes) {
    let Opened { accounting, classes } = lab.inside(End::Host, || freshet_ebpf::open(options).unwrap());
    assert!(matches!(accounting.source(), Source::Kernel { .. }), "{}", accounting.source());
    (accounting, classes)
}

/// Programs on the device, by TCX and by the clsact qdisc; nobody else attaches any there.
fn attached(lab: &Lab) -> (usize, usize) {
    let tcx = lab.inside(End::Host, || {
        let ends = [TcAttachType::Ingress, TcAttachType::Egress];
        ends.into_iter().map(|end| SchedClassifier::query_tcx(lab::DEVICE, end).unwrap().1.len()).sum()
    });
    let clsact = ["ingress", "egress"].map(|end| {
        let output = Command::new("tc")
            .args(["-n", lab.namespace(End::Host), "filter", "show", "dev", lab::DEVICE, end])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains(" handle ")).count()
    });
    (tcx, clsact.iter().sum())
}

fn both_ways(attachment: Attachment) -> (usize, usize) {
    match attachment {
        Attachment::Tcx => (2, 0),
        Attachment::Clsact => (0, 2),
    }
}

/// The daemon: counts until it is killed, and tells on standard output that it does.
#[test]
fn daemon() {
    let Some(namespace) = env::var_os("FR_TEST_NAMESPACE") else { return };
    let namespace = std::fs::File::open(namespace).unwrap();
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind).unwrap();
    // From here on as a service would run that was given these two and nothing else.
    let two = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
    let sets = CapabilitySets { effective: two, permitted: two, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).unwrap();
    let attachment =
        if env::var_os("FR_TEST_CLSACT").is_some() { Attachment::Clsact } else { Attachment::Tcx };
    let pin = env::var_os("FR_TEST_PIN").map(std::path::PathBuf::from);
    let mut opened = freshet_ebpf::open(options(pin.as_deref(), attachment)).unwrap();
    let port = env::var("FR_TEST_PORT").unwrap().parse().unwrap();
    let _claim = opened.classes.port(port, Class::Delivery).unwrap();
    assert!(matches!(opened.accounting.source(), Source::Kernel { .. }), "{}", opened.accounting.source());
    let reading = opened.accounting.read().unwrap();
    println!("counting {}", reading.interfaces[0].epoch);
    // Until the parent closes the pipe, if it does not kill first.
    let _ = std::io::stdin().read(&mut [0; 1]);
}

struct Daemon {
    child: Child,
    epoch: String,
    /// Open to the end, for the daemon may still write.
    _output: BufReader<ChildStdout>,
}

impl Daemon {
    fn spawn(lab: &Lab, pin: Option<&Path>, attachment: Attachment, port: u16) -> Child {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "daemon", "--nocapture", "--test-threads", "1"]);
        command.env("FR_TEST_NAMESPACE", format!("/run/netns/{}", lab.namespace(End::Host)));
        command.env("FR_TEST_PORT", port.to_string());
        if let Some(pin) = pin {
            command.env("FR_TEST_PIN", pin);
        }
        if attachment == Attachment::Clsact {
            command.env("FR_TEST_CLSACT", "1");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn start(lab: &Lab, pin: Option<&Path>, attachment: Attachment, port: u16) -> Self {
        let mut child = Self::spawn(lab, pin, attachment, port);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let lines = output.by_ref().lines().map_while(Result::ok);
        let epoch = lines.filter_map(|line| line.split_once("counting ").map(|l| l.1.to_owned())).next();
        Self { child, epoch: epoch.expect("the daemon counts"), _output: output }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// An orderly end.
    fn stop(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

/// A stream of bytes from the host to the peer until stopped; returns how many there were.
fn load(lab: &Lab, listener: &TcpListener, stop: &AtomicBool, moved: &AtomicU64) -> u64 {
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut socket, _) = listener.accept().unwrap();
            let mut sum = 0;
            while !stop.load(Ordering::Relaxed) {
                socket.write_all(&[0x5a; 20_000]).unwrap();
                sum += 20_000;
                moved.store(sum, Ordering::Relaxed);
                // Enough to be load, little enough to leave both cores to the daemons.
                thread::sleep(std::time::Duration::from_millis(2));
            }
            sum
        });
        let mut client = lab.inside(End::Peer, || TcpStream::connect(address).unwrap());
        let received = std::io::copy(&mut client, &mut std::io::sink()).unwrap();
        assert_eq!(server.join().unwrap(), received);
        received
    })
}

fn leaves_nothing_when_told(test: &str, attachment: Attachment) {
    let Some(lab) = Lab::new(test, false) else { return };
    let pins = lab.pins();
    // What is told to leave nothing does so, also over the pins of a run before.
    for told in [false, true] {
        let (accounting, classes) = open(&lab, options(Some(&pins), attachment));
        let claim = classes.port(8080, Class::Delivery).unwrap();
        if told {
            classes.leave_nothing();
        }
        drop((claim, accounting));
        if told {
            assert!(!pins.exists());
            eventually("all is detached", || attached(&lab) == (0, 0));
        } else {
            assert_eq!(attached(&lab), both_ways(attachment), "pinned on purpose");
        }
    }
}

#[test]
fn a_run_that_is_told_leaves_nothing_by_tcx() {
    leaves_nothing_when_told("quit", Attachment::Tcx);
}

#[test]
fn a_run_that_is_told_leaves_nothing_by_clsact() {
    leaves_nothing_when_told("quitcls", Attachment::Clsact);
}

fn killed_twenty_times(test: &str, attachment: Attachment) {
    let Some(lab) = Lab::new(test, false) else { return };
    let listener = listen(&lab, "10.77.0.1");
    let port = listener.local_addr().unwrap().port();
    let pins = lab.pins();

    let first = Daemon::start(&lab, Some(&pins), attachment, port);
    let epoch = first.epoch.clone();
    first.stop();
    let (mut accounting, _) = open(&lab, options(Some(&pins), attachment));
    let at_start = lab.beyond(End::Host, &mut *accounting);
    drop(accounting);

    let (stop, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    let retransmitted = lab.retransmitted(End::Host);
    let sent = thread::scope(|scope| {
        let load = scope.spawn(|| load(&lab, &listener, &stop, &moved));
        for round in 0..20 {
            // Every other one is killed again somewhere in its start.
            let mut early = Daemon::spawn(&lab, Some(&pins), attachment, port);
            thread::sleep(std::time::Duration::from_millis(round * 15));
            early.kill().unwrap();
            early.wait().unwrap();
            let daemon = Daemon::start(&lab, Some(&pins), attachment, port);
            assert_eq!(daemon.epoch, epoch, "the count goes on");
            assert_eq!(attached(&lab), both_ways(attachment), "one of each");
            let seen = moved.load(Ordering::Relaxed);
            daemon.kill();
            eventually("traffic while nobody runs", || moved.load(Ordering::Relaxed) > seen + 100_000);
        }
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });

    let (mut accounting, _) = open(&lab, options(Some(&pins), attachment));
    assert_eq!(lab.beyond(End::Host, &mut *accounting), at_start, "nothing lost, nothing twice");
    let delivered = accounting.read().unwrap().class(Class::Delivery).outgoing;
    let expected = sent + 66 * delivered.packets + 8;
    let twice = lab.retransmitted(End::Host) - retransmitted;
    if twice == 0 {
        assert_eq!(delivered.bytes, expected, "all of it was delivery");
    } else {
        assert!(
            delivered.bytes >= expected && delivered.bytes <= expected + twice * 1448,
            "{twice} sent twice"
        );
    }
    drop(accounting);

    assert_eq!(attached(&lab), both_ways(attachment), "pinned on purpose");
    let cleaned = lab.inside(End::Host, || cleanup(Some(&pins)).unwrap());
    assert!(!cleaned.pins.is_empty());
    assert!(!pins.exists(), "{cleaned:?}");
    // The kernel takes a link off a moment after its last name is gone.
    eventually("all is detached", || attached(&lab) == (0, 0));
    let again = lab.inside(End::Host, || cleanup(Some(&pins)).unwrap());
    assert_eq!(again, freshet_ebpf::Cleaned::default(), "nothing is left to remove");
}

#[test]
fn killed_twenty_times_under_load_with_tcx() {
    killed_twenty_times("kill-tcx", Attachment::Tcx);
}

#[test]
fn killed_twenty_times_under_load_with_clsact() {
    killed_twenty_times("kill-clsact", Attachment::Clsact);
}

#[test]
fn without_pins_nothing_stays() {
    let Some(lab) = Lab::new("no-pins", false) else { return };
    for attachment in [Attachment::Tcx, Attachment::Clsact] {
        let (accounting, classes) = open(&lab, options(None, attachment));
        assert_eq!(attached(&lab), both_ways(attachment));
        drop(accounting);
        eventually("all is detached, although a handle is left", || attached(&lab) == (0, 0));
        drop(classes);

        let daemon = Daemon::start(&lab, None, attachment, 1);
        assert_eq!(attached(&lab), both_ways(attachment));
        daemon.kill();
        // TCX detaches by itself; a filter of the clsact qdisc stays when nobody could remove it.
        let leaked = if attachment == Attachment::Tcx { (0, 0) } else { (0, 2) };
        eventually("the kernel let go", || attached(&lab) == leaked);
        // The next run takes its place instead of counting beside it, whichever way it attaches.
        for next in [attachment, Attachment::Tcx] {
            let (mut accounting, _classes) = open(&lab, options(None, next));
            eventually("one of each", || attached(&lab) == both_ways(next));
            let at_start = lab.beyond(End::Host, &mut *accounting);
            let listener = listen(&lab, "10.77.0.1");
            download(&lab, &listener, 10_000);
            assert_eq!(lab.beyond(End::Host, &mut *accounting), at_start);
        }
        let daemon = Daemon::start(&lab, None, attachment, 1);
        daemon.kill();
        let cleaned = lab.inside(End::Host, || cleanup(None).unwrap());
        assert_eq!(cleaned.filters.len(), leaked.1);
        eventually("all is detached", || attached(&lab) == (0, 0));
    }
}

#[test]
fn a_device_that_comes_back_is_counted_on() {
    let Some(lab) = Lab::new("replug", false) else { return };
    let pins = lab.pins();
    for pin in [Some(pins.as_path()), None] {
        for attachment in [Attachment::Tcx, Attachment::Clsact] {
            let (mut accounting, classes) = open(&lab, options(pin, attachment));
            let listener = listen(&lab, "10.77.0.1");
            let _claim = classes.listener(&listener, Class::Delivery).unwrap();
            download(&lab, &listener, 50_000);
            lab.beyond(End::Host, &mut *accounting);
            let before = accounting.read().unwrap().interfaces.remove(0);
            assert!(before.present && before.class(Class::Delivery).outgoing.bytes > 50_000);

            lab.unplug();
            eventually("the device is gone", || !accounting.read().unwrap().interfaces[0].present);
            let gone = accounting.read().unwrap().interfaces.remove(0);
            assert!(gone.ours().outgoing.bytes >= before.ours().outgoing.bytes, "counts stay");

            lab.plug(false);
            eventually("the device is back", || accounting.read().unwrap().interfaces[0].present);
            download(&lab, &listener, 50_000);
            let at = lab.beyond(End::Host, &mut *accounting);
            let after = accounting.read().unwrap().interfaces.remove(0);
            let gained = after.class(Class::Delivery).minus(gone.class(Class::Delivery)).outgoing;
            assert_eq!(after.epoch, before.epoch);
            assert_eq!(gained.bytes, 50_000 + 66 * gained.packets + 8, "{attachment}, {pin:?}: {at:?}");
            assert_eq!(attached(&lab), both_ways(attachment));
            drop(accounting);
            lab.inside(End::Host, || cleanup(pin)).unwrap();
        }
    }
}

#[test]
fn a_second_process_does_not_share_the_pins() {
    let Some(lab) = Lab::new("in-use", false) else { return };
    let pins = lab.pins();
    let (accounting, _classes) = open(&lab, options(Some(&pins), Attachment::Tcx));
    let second = lab.inside(End::Host, || freshet_ebpf::open(options(Some(&pins), Attachment::Tcx)).unwrap());
    let Source::Sockets { why } = second.accounting.source() else {
        panic!("{}", second.accounting.source())
    };
    assert!(why.contains("in use by another"), "{why}");
    let refused = lab.inside(End::Host, || cleanup(Some(&pins)).unwrap_err());
    assert!(matches!(refused, KernelError::InUse { .. }), "{refused}");
    drop(accounting);
    lab.inside(End::Host, || cleanup(Some(&pins))).unwrap();
}

#[test]
fn a_pin_directory_elsewhere_costs_the_pins_and_not_the_classifiers() {
    let Some(lab) = Lab::new("no-bpffs", false) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let (accounting, _classes) = open(&lab, options(Some(elsewhere.path()), Attachment::Tcx));
    let expected = Source::Kernel { attachment: Attachment::Tcx, pinned: None };
    assert_eq!(accounting.source(), &expected);
}

#[test]
fn an_interface_that_is_not_chosen_any_more_is_let_go() {
    let Some(lab) = Lab::new("let-go", false) else { return };
    let pins = lab.pins();
    drop(open(&lab, options(Some(&pins), Attachment::Tcx)));
    assert_eq!(attached(&lab), (2, 0));
    let other = Options { interfaces: "lo".parse().unwrap(), ..options(Some(&pins), Attachment::Tcx) };
    let (mut accounting, _classes) = open(&lab, other);
    eventually("the links are gone", || attached(&lab) == (0, 0));
    assert_eq!(accounting.read().unwrap().interfaces[0].name, "lo");
    drop(accounting);
    lab.inside(End::Host, || cleanup(Some(&pins))).unwrap();
}

/// The keeper's thread has but the two capabilities when it loads and attaches; here nobody else has even those.
#[test]
fn capabilities_can_be_dropped_and_counting_goes_on() {
    let Some(lab) = Lab::new("capabilities", false) else { return };
    let listener = listen(&lab, "10.77.0.1");
    let port = listener.local_addr().unwrap().port();
    let (mut accounting, _claim) = lab.inside(End::Host, || {
        let opened = freshet_ebpf::open(options(None, Attachment::Tcx)).unwrap();
        assert!(matches!(opened.accounting.source(), Source::Kernel { .. }));
        drop_capabilities().unwrap();
        let second = freshet_ebpf::open(options(None, Attachment::Tcx)).unwrap();
        let Source::Sockets { why } = second.accounting.source() else { panic!("without any right") };
        assert!(why.contains("CAP_BPF"), "{why}");
        (opened.accounting, opened.classes.port(port, Class::Delivery).unwrap())
    });
    download(&lab, &listener, 30_000);
    let reading = thread::spawn(move || {
        drop_capabilities().unwrap();
        accounting.read().unwrap()
    });
    assert!(reading.join().unwrap().class(Class::Delivery).outgoing.bytes > 30_000);
}

#[test]
fn epochs_tell_counts_apart() {
    let Some(lab) = Lab::new("epochs", false) else { return };
    let epoch = |pin: Option<&Path>| -> Epoch {
        let (mut accounting, _classes) = open(&lab, options(pin, Attachment::Tcx));
        accounting.read().unwrap().interfaces[0].epoch
    };
    let pins = lab.pins();
    assert_ne!(epoch(None), epoch(None));
    let first = epoch(Some(&pins));
    assert_eq!(epoch(Some(&pins)), first);
    lab.inside(End::Host, || cleanup(Some(&pins))).unwrap();
    assert_ne!(epoch(Some(&pins)), first);
    lab.inside(End::Host, || cleanup(Some(&pins))).unwrap();
}
