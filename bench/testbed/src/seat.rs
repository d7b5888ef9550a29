//! A thread that sits in one host's network namespace for as long as the host exists.
//!
//! Everything that must happen "on" the host happens on this thread: sockets opened here are the host's, and
//! processes started here are born in its namespace, with the mounts (bpffs, cgroup2) of the harness, which
//! `ip netns exec` would hide. The parent-death signal of a child is bound to the thread that started it, so this
//! thread must not end before the host does; and when the harness dies, the children die.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Error;

type Job = Box<dyn FnOnce() + Send>;

/// The thread, and the way to give it work. Work is done one piece at a time, so it must be short.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    jobs: mpsc::Sender<Job>,
}

impl Seat {
    /// Opens a seat in the namespace at `netns`, or in the harness's own when there is none.
    pub(crate) fn open(name: &str, netns: Option<&Path>) -> Result<Seat, Error> {
        let netns = match netns {
            Some(path) => {
                Some(File::open(path).map_err(Error::io(format!("opening namespace {}", path.display())))?)
            }
            None => None,
        };
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (entered, whether) = mpsc::channel();
        thread::Builder::new()
            .name(format!("host-{name}"))
            .spawn(move || {
                let result = match &netns {
                    Some(file) => move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)),
                    None => Ok(()),
                };
                let sits = result.is_ok();
                let heard = entered.send(result).is_ok();
                if sits && heard {
                    for job in inbox {
                        job();
                    }
                }
            })
            .map_err(Error::io("starting a host's thread"))?;
        match whether.recv() {
            Ok(Ok(())) => Ok(Seat { jobs }),
            Ok(Err(errno)) => {
                Err(Error::Io { doing: format!("entering the namespace of {name}"), source: errno.into() })
            }
            Err(_) => Err(Error::Gone { what: format!("the thread of {name}") }),
        }
    }

    /// Does `work` on the host and gives back what it gives.
    pub(crate) fn call<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (answer, result) = mpsc::channel();
        // A send only fails when the other end is gone, which `recv` below then reports.
        let job: Job = Box::new(move || drop(answer.send(work())));
        self.jobs.send(job).ok()?;
        result.recv().ok()
    }
}
