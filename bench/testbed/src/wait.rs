//! Waiting for a condition, with a deadline and a way to be cancelled: the testbed's only kind of sleep.

use std::thread;
use std::time::{Duration, Instant};

use crate::{Cancel, Error};

/// Asks `probe` again and again until it gives a value; `what` names the condition in the error.
///
/// # Errors
///
/// [`Error::Timeout`] when `timeout` has passed, [`Error::Cancelled`] when `cancel` is set, and whatever `probe`
/// itself fails with, at once.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    cancel: &Cancel,
    mut probe: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    let started = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if cancel.is_cancelled() {
            return Err(Error::Cancelled { what: what.to_owned() });
        }
        if started.elapsed() >= timeout {
            return Err(Error::Timeout { what: what.to_owned(), after: timeout, tail: String::new() });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_once_it_is_there() {
        let mut asked = 0;
        let value = wait_until("a third time", Duration::from_secs(5), &Cancel::default(), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn names_what_was_waited_for_in_vain() {
        let error = wait_until::<()>("godot", Duration::from_millis(5), &Cancel::default(), || Ok(None));
        assert!(error.unwrap_err().to_string().contains("godot"));
    }

    #[test]
    fn ends_when_cancelled() {
        let cancel = Cancel::default();
        cancel.cancel();
        let error = wait_until::<()>("godot", Duration::from_secs(60), &cancel, || Ok(None));
        assert!(matches!(error, Err(Error::Cancelled { .. })));
    }
}
