//! Who goes first where cores are scarce: the front door's rings. What works beside them (API, rebuilds, hashing) takes
//! what they leave, and never less than a tenth of a core.

/// Puts the calling thread behind the rings. The kernel keeps a priority for each thread, and lowering one's own needs
/// no privilege (sched(7)).
pub fn behind_the_rings() {
    if let Err(error) = rustix::process::nice(BESIDE) {
        tracing::debug!(%error, "this thread keeps its priority");
    }
}

/// Steps of `nice`: with ten, a thread gets a tenth of what one without gets.
const BESIDE: i32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_asks_steps_back() {
        let before = rustix::process::nice(0).unwrap();
        let beside = std::thread::spawn(|| {
            behind_the_rings();
            rustix::process::nice(0).unwrap()
        });
        assert_eq!(beside.join().unwrap(), (before + BESIDE).min(19));
        assert_eq!(rustix::process::nice(0).unwrap(), before);
    }
}
