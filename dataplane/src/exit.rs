//! What the exit status says about a failure, so that a service manager or a script can tell them apart.

use std::process::ExitCode;

use freshet_engine::StartError;

/// A failure that ends the program.
#[derive(Debug)]
pub struct Failure {
    /// Whose fault it is.
    pub kind: FailureKind,
    /// What happened and what to do.
    pub error: anyhow::Error,
}

/// Whose fault it is; the numbers are the exit statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FailureKind {
    /// Something that may work at the next attempt, or that no other status names.
    Runtime = 1,
    /// The command line or the configuration.
    Configuration = 2,
    /// The kernel lacks or forbids something.
    Kernel = 3,
    /// Control refuses this host, or it has not joined.
    Membership = 4,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, error: impl Into<anyhow::Error>) -> Self {
        Self { kind, error: error.into() }
    }

    /// The command line or the configuration is wrong.
    pub fn configuration(error: impl Into<anyhow::Error>) -> Self {
        Self::new(FailureKind::Configuration, error)
    }

    /// Control refuses this host, or it has not joined.
    pub fn membership(error: impl Into<anyhow::Error>) -> Self {
        Self::new(FailureKind::Membership, error)
    }

    /// The exit status.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

impl std::fmt::Display for Failure {
    /// The error and its causes; a cause that the text before it told already is left out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut told = self.error.to_string();
        f.write_str(&told)?;
        for cause in self.error.chain().skip(1).map(ToString::to_string) {
            if !told.contains(&cause) {
                write!(f, ": {cause}")?;
                told = cause;
            }
        }
        Ok(())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(FailureKind::Runtime, error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let kind = match &error {
            StartError::Uring { .. } | StartError::Missing { .. } => FailureKind::Kernel,
            StartError::NoListeners => FailureKind::Configuration,
            _ => FailureKind::Runtime,
        };
        Self::new(kind, error)
    }
}

/// What `--help` says about exit statuses.
pub const EXIT_STATUS_HELP: &str = "\
Exit status:
  0  done, or stopped by a signal
  1  a failure that may pass: an address in use, a disk that is full, control out of reach
  2  the command line or the configuration is wrong
  3  the kernel lacks or forbids what the server needs (io_uring)
  4  this host is no volunteer: it has not joined, or control refuses it";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_and_the_configuration_are_told_apart() {
        let missing = StartError::Missing { operation: "IORING_OP_SEND", since: "5.6" };
        assert_eq!(Failure::from(missing).kind, FailureKind::Kernel);
        assert_eq!(Failure::from(StartError::NoListeners).kind, FailureKind::Configuration);
        let address = "127.0.0.1:1".parse().unwrap();
        let bind = StartError::Bind { address, source: std::io::Error::other("in use") };
        assert_eq!(Failure::from(bind).kind, FailureKind::Runtime);
    }

    #[test]
    fn a_cause_is_told_once() {
        let address = "127.0.0.1:1".parse().unwrap();
        let bind = StartError::Bind { address, source: std::io::Error::other("in use") };
        assert_eq!(Failure::from(bind).to_string(), "cannot listen on 127.0.0.1:1: in use");
        let layered = anyhow::anyhow!("disk").context("cannot write").context("cannot start");
        assert_eq!(Failure::from(layered).to_string(), "cannot start: cannot write: disk");
    }
}
