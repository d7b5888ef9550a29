//! What can go wrong in a testbed, with enough of the circumstances to act on it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error of the testbed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system command (`ip`, `tc`, `apt-get`, ...) ended with an error.
    #[error("`{command}` failed with {status}: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// A program could not be started at all.
    #[error(
        "cannot start `{program}`: {source}; install it (`cargo xtask setup` lists the packages) or build it"
    )]
    Start {
        /// What was to be started.
        program: String,
        /// Why it could not.
        source: io::Error,
    },
    /// A file, directory or kernel interface could not be used.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A condition did not come true in time.
    #[error("waited {} s for {what}, in vain{tail}", after.as_secs_f32())]
    Timeout {
        /// The condition.
        what: String,
        /// How long was waited.
        after: Duration,
        /// The end of the log concerned, or empty.
        tail: String,
    },
    /// A process ended while something was still expected of it.
    #[error("{process} ended ({status}) while {what} was expected of it{tail}")]
    Ended {
        /// The process's name.
        process: String,
        /// Its exit status.
        status: String,
        /// What was expected.
        what: String,
        /// The end of its log.
        tail: String,
    },
    /// The run was cancelled, by a signal as a rule.
    #[error("cancelled while waiting for {what}")]
    Cancelled {
        /// What was being waited for.
        what: String,
    },
    /// A named bound of the testbed was reached.
    #[error("a testbed has at most {max} {what}")]
    Full {
        /// Of what there are too many.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// A name that cannot be used for a host, network or interface.
    #[error(
        "`{name}` cannot name a {what}: expected 1 to {max} of a-z, 0-9 and `-`, and no other {what} of that name"
    )]
    Name {
        /// The name as given.
        name: String,
        /// What it was to name.
        what: &'static str,
        /// The greatest length.
        max: usize,
    },
    /// A host, process or network of a testbed that is already gone was used.
    #[error("{what} belongs to a testbed that has been torn down")]
    Gone {
        /// What was used.
        what: String,
    },
    /// The state directory exists and is somebody else's.
    #[error("state directory {path} belongs to user {owner}, expected {expected}: remove it or set TMPDIR")]
    ForeignState {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it must be.
        expected: u32,
    },
    /// A host that is reached by ssh was to do what only a host of this machine can.
    #[error("{doing} is not possible on {host}, which is reached by ssh: its network is not ours")]
    Elsewhere {
        /// The host.
        host: String,
        /// What was to be done.
        doing: &'static str,
    },
    /// A host that the inventory does not have was asked for.
    #[error("the inventory has no host `{host}`; it has {known}: add it")]
    NotListed {
        /// The host.
        host: String,
        /// Those that it has.
        known: String,
    },
    /// A repository could not be made.
    #[error("cannot make the repository: {why}")]
    Repository {
        /// Why, and what to do.
        why: String,
    },
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Io { doing, source }
    }
}
