//! Opening a mirror whose last user was killed in this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mirror::{Mirror, MirrorError, MirrorOptions};

/// Opens the mirror; a killed one's last blocking step may still be letting go of the index, and is waited for.
pub(crate) async fn open(options: &MirrorOptions) -> Arc<Mirror> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Mirror::open(options.clone()) {
            Ok(mirror) => return mirror,
            Err(MirrorError::InUse { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
