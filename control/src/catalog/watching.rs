//! What inotify says has changed, gathered until the keeper asks.
//!
//! Only paths are taken from it, never what happened to them: the keeper looks for itself. When there are too many,
//! or the kernel lost some, that is all that is said, and a walk finds them. The kernel tells nothing of a hard-linked
//! file's other names, nor of writes through a memory map; these too are left to the walk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::bell::Bell;

/// Watches a tree for as long as it lives.
#[derive(Debug)]
pub(super) struct Watching {
    _watcher: RecommendedWatcher,
    root: PathBuf,
    basket: Arc<Basket>,
}

/// What was gathered.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Paths, and whether a directory at the path must be looked through (not only its own attributes changed).
    pub(super) paths: HashMap<PathBuf, bool>,
    /// Something was lost: only a walk over everything helps.
    pub(super) lost: bool,
    /// Why the watch is no longer complete.
    pub(super) broken: Option<String>,
}

#[derive(Debug)]
struct Basket {
    gathered: Mutex<Gathered>,
    bell: Arc<Bell>,
}

impl Watching {
    /// Watches every directory beneath the root; takes a while for many.
    ///
    /// # Errors
    /// Why it cannot, for people.
    pub(super) fn start(root: &Path, bell: Arc<Bell>) -> Result<Self, String> {
        let basket = Arc::new(Basket { gathered: Mutex::default(), bell });
        let handler = Arc::clone(&basket);
        let config = notify::Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(move |event| handler.put(event), config)
            .map_err(|error| explained(&error))?;
        watcher.watch(root, RecursiveMode::Recursive).map_err(|error| explained(&error))?;
        Ok(Self { _watcher: watcher, root: root.to_owned(), basket })
    }

    /// What is watched.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Everything since the last time.
    pub(super) fn fetch(&self) -> Gathered {
        std::mem::take(&mut *self.basket.gathered.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Basket {
    fn put(&self, event: notify::Result<Event>) {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Ok(event) if event.need_rescan() => gathered.lost = true,
            Ok(event) => {
                let deep = match event.kind {
                    EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
                    EventKind::Access(_) => return,
                    EventKind::Modify(ModifyKind::Metadata(_) | ModifyKind::Data(_)) => false,
                    _ => true,
                };
                for path in event.paths {
                    if gathered.paths.len() >= PATHS_MAX {
                        gathered.paths.clear();
                        gathered.lost = true;
                    }
                    *gathered.paths.entry(path).or_insert(false) |= deep;
                }
            }
            Err(error) => {
                gathered.broken = Some(explained(&error));
                gathered.lost = true;
            }
        }
        drop(gathered);
        self.bell.ring();
    }
}

fn explained(error: &notify::Error) -> String {
    match error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the tree has more directories than inotify may watch: raise the \
             sysctl fs.inotify.max_user_watches; until then changes are found by the periodic walk alone"
                .to_owned()
        }
        _ => format!("the tree cannot be watched ({error}); changes are found by the periodic walk alone"),
    }
}

/// Paths gathered at most, before a walk is cheaper.
const PATHS_MAX: usize = 65_536;
