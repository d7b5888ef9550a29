//! What control ordered this volunteer to hold, where its owner leaves that to control; kept across restarts, so that
//! nothing is dropped before control has spoken again.

use std::path::PathBuf;

use anyhow::Context as _;
use freshet_api::heartbeat::{HoldOffer, HoldOrder};

use crate::config::mirror::MirrorConfig;
use crate::mirror::{Mirror, Selection};

/// The last order, and what it is applied to.
#[derive(Debug)]
pub struct Orders {
    offer: Option<HoldOffer>,
    owners: Selection,
    file: PathBuf,
    last: HoldOrder,
}

impl Orders {
    /// As the owner configured it, with what was ordered last.
    ///
    /// # Errors
    /// When the patterns are none, or the kept order can't be read.
    pub fn load(config: &MirrorConfig, state: &std::path::Path) -> anyhow::Result<Self> {
        let file = state.join(FILE);
        let last = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged; without it, control orders anew", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => HoldOrder::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok(Self { offer: config.offer(), owners: config.selection()?, file, last })
    }

    /// What is kept.
    pub fn selection(&self) -> Selection {
        match self.offer {
            Some(_) => self.owners.clone().ordered(&self.last.include),
            None => self.owners.clone(),
        }
    }

    /// What is left to control.
    pub fn offer(&self) -> Option<&HoldOffer> {
        self.offer.as_ref()
    }

    /// Takes an order in; says whether the mirror has to become another.
    pub fn follow(&mut self, order: Option<&HoldOrder>, mirror: &Mirror) -> bool {
        let Some(order) = order.filter(|order| self.offer.is_some() && **order != self.last) else {
            return false;
        };
        let stored = serde_json::to_vec(order).map_err(std::io::Error::other);
        if let Err(error) = stored.and_then(|text| crate::durable::write(&self.file, &text, 0o644)) {
            tracing::warn!(%error, "what control ordered is not followed, since it can't be remembered");
            return false;
        }
        tracing::info!(patterns = order.include.len(), "control orders what to hold");
        self.last = order.clone();
        mirror.select(self.selection())
    }
}

const FILE: &str = "orders.json";

#[cfg(test)]
mod tests {
    use freshet_api::Bytes;

    use super::*;
    use crate::mirror::MirrorOptions;

    fn order(patterns: &[&str]) -> HoldOrder {
        HoldOrder { include: patterns.iter().map(|pattern| (*pattern).to_owned()).collect() }
    }

    #[test]
    fn orders_are_followed_and_remembered_only_where_the_owner_lets_control_choose() {
        let directory = tempfile::tempdir().unwrap();
        let mirror =
            Mirror::open(MirrorOptions::new(directory.path().join("store"), directory.path().join("tree")))
                .unwrap();
        let own = MirrorConfig { quota: Some(Bytes(1 << 30)), ..MirrorConfig::default() };
        let mut orders = Orders::load(&own, directory.path()).unwrap();
        assert!(orders.offer().is_none() && !orders.follow(Some(&order(&["a/**"])), &mirror));
        assert!(orders.selection().selects("b"));

        let left = MirrorConfig { ordered: true, ..own };
        let mut orders = Orders::load(&left, directory.path()).unwrap();
        assert_eq!(orders.offer().unwrap().space, Bytes(1 << 30));
        assert!(!orders.follow(None, &mirror));
        assert!(orders.follow(Some(&order(&["a/**"])), &mirror));
        assert!(!orders.follow(Some(&order(&["a/**"])), &mirror), "nothing new");
        let again = Orders::load(&left, directory.path()).unwrap();
        assert!(again.selection().selects("a/x") && !again.selection().selects("b/x"));
    }
}
