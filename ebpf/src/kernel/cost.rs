//! What one packet costs: the kernel runs the classifiers on made-up packets and tells the time. For a
//! measurement under load there are programs that do nothing.

use std::time::Duration;

use aya::programs::{ProgramError, SchedClassifier, TcAttachType, TestRun, TestRunOptions};
use freshet_ebpf_abi as abi;
use freshet_ebpf_abi::{Class, Config};

use super::{KernelError, capabilities, object};
use crate::classes::MarkRule;

/// The measured cost of one kind of packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunCost {
    /// What was run, e.g. `out, v4 by port`.
    pub case: &'static str,
    /// Nanoseconds a run, as the kernel reports them (whole ones); the median of [`ROUNDS`].
    pub nanoseconds: u32,
    /// Nanoseconds of a program that does nothing, measured in turns with it; the median too.
    pub empty_nanoseconds: u32,
    /// The quickest and the slowest round.
    pub spread: (u32, u32),
}

impl RunCost {
    /// What the classifier adds to a packet, in nanoseconds.
    #[must_use]
    pub fn net_nanoseconds(&self) -> u32 {
        self.nanoseconds.saturating_sub(self.empty_nanoseconds)
    }
}

/// Runs each case [`ROUNDS`] times `repeat` times with `BPF_PROG_TEST_RUN` (Linux 4.12). A hundred thousand is about 0.1 s a case.
///
/// # Errors
/// Without CAP_BPF and CAP_NET_ADMIN, or when the kernel refuses the programs.
pub fn test_run_cost(repeat: u32) -> Result<Vec<RunCost>, KernelError> {
    capabilities::check()?;
    let (mut ebpf, mut maps) = object::load(14, None)?;
    let marks = MarkRule::default();
    maps.set_config(Config { mark_mask: marks.mask, mark_base: marks.base, ..Config::default() })?;
    maps.set_port(OUR_PORT, Class::Delivery)?;
    for name in [abi::program::EMPTY, abi::program::INGRESS, abi::program::EGRESS] {
        object::program(&mut ebpf, name)?.load().map_err(failed)?;
    }
    let mut costs = Vec::new();
    for case in cases(marks) {
        let mut rounds = [[0; ROUNDS]; 2];
        for round in 0..ROUNDS {
            for (program, times) in [abi::program::EMPTY, case.program].into_iter().zip(&mut rounds) {
                times[round] = run(object::program(&mut ebpf, program)?, &case, repeat)?.as_nanos() as u32;
            }
        }
        let [empty, ours] = &mut rounds;
        empty.sort_unstable();
        ours.sort_unstable();
        costs.push(RunCost {
            case: case.name,
            nanoseconds: ours[ROUNDS / 2],
            empty_nanoseconds: empty[ROUNDS / 2],
            spread: (ours[0], ours[ROUNDS - 1]),
        });
    }
    Ok(costs)
}

/// Programs that do nothing at both ends of an interface, so that in a measurement under load the cost of counting can
/// be told from what the kernel takes for calling any program. Detached when dropped.
#[derive(Debug)]
pub struct EmptyPrograms {
    _loaded: aya::Ebpf,
}

impl EmptyPrograms {
    /// Attaches them to `interface` of the calling thread's network namespace (Linux 4.5; TCX from 6.6 on).
    ///
    /// # Errors
    /// Without CAP_BPF and CAP_NET_ADMIN, without such an interface, or when the kernel refuses.
    pub fn attach(interface: &str) -> Result<Self, KernelError> {
        capabilities::check()?;
        let (mut ebpf, _maps) = object::load(14, None)?;
        let failed = |error: ProgramError| KernelError::attach(interface, error);
        let program = object::program(&mut ebpf, abi::program::EMPTY)?;
        program.load().map_err(failed)?;
        for end in [TcAttachType::Ingress, TcAttachType::Egress] {
            program.attach(interface, end).map_err(failed)?;
        }
        Ok(Self { _loaded: ebpf })
    }
}

fn run(program: &mut SchedClassifier, case: &Case, repeat: u32) -> Result<Duration, KernelError> {
    let mut context = [0u8; CONTEXT_LEN];
    context[CONTEXT_MARK..CONTEXT_MARK + 4].copy_from_slice(&case.mark.to_ne_bytes());
    let options = TestRunOptions {
        data_in: Some(&case.packet),
        ctx_in: Some(&context),
        repeat,
        ..TestRunOptions::default()
    };
    Ok(program.test_run(options).map_err(failed)?.duration)
}

fn failed(error: ProgramError) -> KernelError {
    KernelError::attach("a test run", error)
}

struct Case {
    name: &'static str,
    program: &'static str,
    packet: Vec<u8>,
    mark: u32,
}

fn cases(marks: MarkRule) -> Vec<Case> {
    let (incoming, outgoing) = (abi::program::INGRESS, abi::program::EGRESS);
    let case = |name, program, packet, mark| Case { name, program, packet, mark };
    vec![
        case(
            "out, v4 by mark",
            outgoing,
            ipv4(ethernet(0x0800), OUR_PORT, 1000),
            marks.mark(Class::Delivery),
        ),
        case("out, v4 by port", outgoing, ipv4(ethernet(0x0800), OUR_PORT, 1000), 0),
        case("out, v6 by port", outgoing, ipv6(ethernet(0x86dd), OUR_PORT, 1000), 0),
        case("out, v4 the owner's", outgoing, ipv4(ethernet(0x0800), 1000, 1001), 0),
        case("in, v4 by port", incoming, ipv4(ethernet(0x0800), 1000, OUR_PORT), 0),
        case("in, v6 by port", incoming, ipv6(ethernet(0x86dd), 1000, OUR_PORT), 0),
        case("in, arp", incoming, [ethernet(0x0806), vec![0; 46]].concat(), 0),
    ]
}

fn ethernet(ether_type: u16) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &ether_type.to_be_bytes()].concat()
}

fn ipv4(mut packet: Vec<u8>, source: u16, destination: u16) -> Vec<u8> {
    packet.extend([0x45, 0, 5, 212, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    tcp(packet, source, destination)
}

fn ipv6(mut packet: Vec<u8>, source: u16, destination: u16) -> Vec<u8> {
    packet.extend([0x60, 0, 0, 0, 5, 192, 6, 64]);
    packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    tcp(packet, source, destination)
}

fn tcp(mut packet: Vec<u8>, source: u16, destination: u16) -> Vec<u8> {
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    packet.resize(1514, 0x5a);
    packet
}

/// Measurements of each case, of which the median counts.
pub const ROUNDS: usize = 7;

const OUR_PORT: u16 = 8080;

/// `struct __sk_buff` (include/uapi/linux/bpf.h) up to and with `hwtstamp`.
const CONTEXT_LEN: usize = 192;

/// Offset of `mark` in it.
const CONTEXT_MARK: usize = 8;
