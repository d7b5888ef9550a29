//! Reads the settings again: what differs from those in force, and which of it a running control can change.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use freshet_api::operator::ReloadView;
use serde_json::Value;

use crate::settings::{Options, Settings};

/// Where settings come from, and what was in force last.
pub struct Reloader {
    read: Box<dyn Fn() -> anyhow::Result<Options> + Send + Sync>,
    in_force: Mutex<BTreeMap<String, Value>>,
}

impl Reloader {
    /// Reads them with `read`; `now` is what is in force.
    pub fn new(now: &Options, read: impl Fn() -> anyhow::Result<Options> + Send + Sync + 'static) -> Self {
        Self { read: Box::new(read), in_force: Mutex::new(values(now)) }
    }

    /// For settings that come from nowhere else.
    pub fn fixed() -> Self {
        Self::new(&Options::default(), || {
            anyhow::bail!("these settings were given once and stand in no file")
        })
    }

    /// Reads and checks them, and says what is different. What can't change while control runs stays reported until the
    /// restart that puts it into force.
    ///
    /// # Errors
    /// In words, when they can't be read or are wrong.
    pub fn reload(&self) -> Result<(ReloadView, Settings), String> {
        let options = (self.read)().map_err(|error| format!("{error:#}; everything stays as it was"))?;
        let settings = Settings::check(options.clone())
            .map_err(|error| format!("{error}; everything stays as it was"))?;
        let new = values(&options);
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let mut view = ReloadView::default();
        for (key, value) in &new {
            if in_force.get(key) == Some(value) {
                continue;
            }
            if AT_ONCE.contains(&key.as_str()) {
                in_force.insert(key.clone(), value.clone());
                view.applied.push(key.clone());
            } else {
                view.waiting.push(key.clone());
            }
        }
        tracing::info!(
            applied = view.applied.join(", "),
            waiting = view.waiting.join(", "),
            "settings read again"
        );
        Ok((view, settings))
    }
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("in_force", &self.in_force).finish_non_exhaustive()
    }
}

fn values(options: &Options) -> BTreeMap<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(map)) => map.into_iter().collect(),
        _ => BTreeMap::new(),
    }
}

/// What a running control can change.
const AT_ONCE: [&str; 2] = ["heartbeat_ms", "join_secs"];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_changed_is_in_force_or_said_to_wait() {
        let options = |heartbeat, rings| Options {
            repo: Some("/srv/repo".into()),
            state: Some("/var/lib/state".into()),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            heartbeat_ms: Some(heartbeat),
            rings: Some(rings),
            ..Options::default()
        };
        let file = Arc::new(Mutex::new(options(1_000, 1)));
        let read = Arc::clone(&file);
        let reloader = Reloader::new(&options(1_000, 1), move || Ok(read.lock().unwrap().clone()));
        assert_eq!(reloader.reload().unwrap().0, ReloadView::default());
        *file.lock().unwrap() = options(2_000, 2);
        for applied in [vec!["heartbeat_ms".to_owned()], Vec::new()] {
            let (view, settings) = reloader.reload().unwrap();
            assert_eq!((view.applied, view.waiting), (applied, vec!["rings".to_owned()]));
            assert_eq!(settings.heartbeat.as_millis(), 2_000);
        }
        *file.lock().unwrap() = options(1, 2);
        assert!(reloader.reload().unwrap_err().contains("stays as it was"));
    }
}
