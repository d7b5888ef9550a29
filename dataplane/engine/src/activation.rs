//! Listening sockets that a service manager opened before this process and hands over (`sd_listen_fds(3)`), so that a
//! restart refuses no connection: they wait in the kernel until the next process accepts them.
//!
//! It opens nothing and decides nothing: who takes a socket says what it is for.

use std::net::TcpListener;

use listenfd::ListenFd;

/// The sockets that were handed over and not taken yet.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(String, TcpListener)>,
}

impl Inherited {
    /// Takes over what the environment tells of (`LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`); to be called once, before
    /// there are other threads. What is not a TCP socket is left where it is.
    pub fn from_environment() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut handed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..handed.len() {
            // An error says that it is something else than a listening TCP socket.
            if let Ok(Some(socket)) = handed.take_tcp_listener(index) {
                let name = names.split(':').nth(index).unwrap_or_default();
                sockets.push((name.to_owned(), socket));
            }
        }
        Self { sockets }
    }

    /// Takes all sockets with this `FileDescriptorName=`, in their order.
    pub fn take(&mut self, name: &str) -> Vec<TcpListener> {
        let (taken, left) =
            std::mem::take(&mut self.sockets).into_iter().partition(|(found, _)| found == name);
        self.sockets = left;
        let taken: Vec<(String, TcpListener)> = taken;
        taken.into_iter().map(|(_, socket)| socket).collect()
    }

    /// Names of those that nobody took.
    pub fn left(&self) -> impl Iterator<Item = &str> {
        self.sockets.iter().map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_taken_by_name_in_their_order() {
        let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (first, second) = (socket(), socket());
        let expected = [first.local_addr().unwrap(), second.local_addr().unwrap()];
        let mut inherited =
            Inherited { sockets: vec![("a".into(), first), ("b".into(), socket()), ("a".into(), second)] };
        let taken: Vec<_> = inherited.take("a").iter().map(|socket| socket.local_addr().unwrap()).collect();
        assert_eq!(taken, expected);
        assert!(inherited.take("a").is_empty());
        assert_eq!(inherited.left().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_process_that_was_handed_nothing_has_nothing() {
        assert_eq!(Inherited::from_environment().left().count(), 0);
    }
}
