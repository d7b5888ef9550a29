//! One release over equal links, for measurements that are made of several: each trial has a testbed of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use freshet_testbed::Cancel;
use freshet_testbed::repository::Selection;

use super::content::Content;
use super::links::Links;
use super::{Contender, Course, NEEDED, Outcome, rsync, swarm};
use crate::ground;

/// What is released, and to whom.
pub(crate) struct Trial {
    links: Links,
    content: Content,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The figures.
    pub(crate) outcome: Outcome,
    /// The release's size.
    pub(crate) release_bytes: u64,
    /// The shortest time that the links allow.
    pub(crate) secs_min: f64,
}

impl Trial {
    /// At most `bytes` of small packages, laid out in `root`, for so many mirrors at so many Mbit/s; links carry single
    /// packets, so that programs and kernel count the same.
    pub(crate) fn new(mirrors: usize, mbit: u64, bytes: u64, root: &Path) -> Result<Trial> {
        let links = Links { single_packets: true, ..Links::new(mirrors, mbit, mbit, mbit) };
        Ok(Trial { links, content: Content::gather(root, Selection::Many, bytes)? })
    }

    /// What is released, in words.
    pub(crate) fn describe(&self) -> String {
        self.content.describe()
    }

    /// Releases it once; `directory` is made and removed.
    pub(crate) fn run(
        &self,
        contender: Contender,
        programs: &Path,
        directory: &Path,
        cancel: &Cancel,
    ) -> Result<Ran> {
        let testbed = ground::namespaces(cancel, NEEDED)?;
        std::fs::create_dir(directory)?;
        let course = Course {
            testbed: &testbed,
            links: &self.links,
            content: &self.content,
            programs,
            directory,
            origin_copies: None,
            timeout: TIMEOUT,
        };
        let outcome = match contender {
            Contender::Swarm => swarm::measure(&course, None)?,
            Contender::Rsync => rsync::measure(&course)?,
            other => bail!("{other:?} is no contender of a trial"),
        };
        drop(testbed);
        std::fs::remove_dir_all(directory)?;
        let release_bytes = self.content.bytes;
        Ok(Ran { outcome, release_bytes, secs_min: self.links.secs_min(release_bytes) })
    }
}

const TIMEOUT: Duration = Duration::from_secs(300);
