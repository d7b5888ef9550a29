//! How the keeper looks at the tree: one path, one directory with all beneath it, or everything.
//!
//! It takes nothing for deleted that it could not see: an unreadable directory or a missing mount keeps what the
//! catalogue has of it.

use std::collections::HashSet;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshet_api::manifest::RepoPath;

use super::hashing::Job;
use super::keeper::{BUSY_TICK, Keeper, NOT_UTF8, PUMP_EVERY, Twins, since_epoch};
use super::left_out::Note;
use super::publishing::Staged;
use super::snapshot::{joined, parent};
use super::tree::{self, Found, Listing, Node, Tree};
use super::watching::Watching;

impl Keeper {
    /// Walks over everything, and sees to the watch.
    pub(super) fn walk_all(&mut self) {
        let tree = match Tree::open(&self.options.repo) {
            Ok(tree) => Arc::new(tree),
            Err(error) => return self.refuse_root(&error),
        };
        self.tree = Some(tree);
        self.watch();
        self.left_out.remove_beneath("");
        // What this walk finds too much for it, or too fresh, may ask for the next one sooner.
        self.walk_at = Instant::now() + self.options.rescan_every;
        let ended = self.walk("");
        if !ended {
            return;
        }
        self.left_out.settle(&Note::Root);
        if self.left_out.has(&Note::Mount(String::new())) {
            self.leave_root();
        } else {
            self.walked = true;
            self.walks_ended = self.walks_seen;
        }
    }

    /// Opens the root again; `false` when it is not what it was, and then a walk must decide.
    pub(super) fn reopen_tree(&mut self) -> bool {
        match Tree::open(&self.options.repo) {
            Ok(tree) if self.mounts.get("").is_none_or(|&device| device == tree.device()) => {
                self.tree = Some(Arc::new(tree));
                true
            }
            Ok(_) => {
                self.walk_at = Instant::now();
                false
            }
            Err(error) => {
                self.refuse_root(&error);
                false
            }
        }
    }

    /// Looks again where something was not mounted; cheap for as long as nothing is.
    pub(super) fn look_at_mounts(&mut self) {
        self.mounts_at = None;
        let missing = self.left_out.missing_mounts();
        if missing.is_empty() || !self.reopen_tree() {
            return;
        }
        for mount in missing {
            self.walk(&mount);
        }
    }

    /// Looks at one path; a directory is walked when `deep`.
    pub(super) fn look(&mut self, path: &str, deep: bool) {
        let Some(tree) = self.tree.clone() else { return };
        let doubtful = |mount: &String| tree::is_beneath(path, mount);
        if let Some(mount) = self.left_out.missing_mounts().into_iter().find(doubtful) {
            self.walk(&mount);
            return;
        }
        let Ok(path) = path.parse::<RepoPath>() else {
            if tree.node(path).is_ok() {
                self.left_out.add(path, "its path has control characters or is too long");
            } else {
                self.left_out.remove(path);
            }
            return;
        };
        if let Some(reason) = ignored(path.as_str()) {
            if tree.node(path.as_str()).is_ok() {
                self.left_out.add(path.as_str(), reason);
            } else {
                self.left_out.remove(path.as_str());
            }
            return self.gone(&path);
        }
        match tree.node(path.as_str()) {
            Ok(Node::Directory) => {
                let was_left_out = self.left_out.contains(path.as_str());
                self.gone_itself(&path);
                if deep || was_left_out {
                    self.left_out.remove(path.as_str());
                    self.walk(path.as_str());
                }
            }
            Ok(node) => {
                self.gone_beneath(path.as_str());
                self.consider(path, node);
            }
            Err(error) if tree::says_gone(&error) => {
                self.left_out.remove(path.as_str());
                if self.is_still_mounted(path.as_str()) {
                    self.gone(&path);
                } else {
                    self.walk_at = Instant::now();
                }
            }
            Err(error) => self.left_out.add(path.as_str(), format!("cannot be looked at: {error}")),
        }
    }

    /// Looks at a directory and all beneath it; `false` when stopped on the way.
    fn walk(&mut self, top: &str) -> bool {
        let Some(tree) = self.tree.clone() else { return false };
        self.left_out.remove_beneath(top);
        let above = (!top.is_empty()).then(|| tree.device_of(parent(top).0).unwrap_or(tree.device()));
        let mut visited_mounts = HashSet::new();
        let mut open: Vec<(String, Option<u64>)> = vec![(top.to_owned(), above)];
        let mut looked = 0;
        while let Some((directory, above)) = open.pop() {
            let listing = match tree.list(&directory) {
                Ok(listing) => listing,
                Err(error) if tree::says_gone(&error) && !directory.is_empty() => {
                    self.gone_beneath(&directory);
                    continue;
                }
                Err(error) if directory.is_empty() => {
                    self.refuse_root(&error);
                    return false;
                }
                Err(error) => {
                    self.left_out
                        .add(&directory, format!("cannot be listed, what was known of it stays: {error}"));
                    continue;
                }
            };
            if above != Some(listing.device) || self.mounts.contains_key(&directory) {
                visited_mounts.insert(directory.clone());
                if !self.mount_is_plausible(&directory, above, &listing) {
                    continue;
                }
            }
            let device = listing.device;
            let Some(folders) = self.look_through(&directory, listing, &mut looked) else { return false };
            open.extend(folders.into_iter().rev().map(|folder| (folder, Some(device))));
            self.pump();
        }
        if top.is_empty() {
            let before = self.mounts.len();
            self.mounts.retain(|path, _| visited_mounts.contains(path));
            self.mounts_changed |= self.mounts.len() != before;
            self.left_out.settle_mounts(|path| visited_mounts.contains(path));
        }
        true
    }

    /// Compares one directory with what is known of it; returns its directories, `None` when stopped.
    fn look_through(&mut self, directory: &str, listing: Listing, looked: &mut usize) -> Option<Vec<String>> {
        let mut folders = Vec::new();
        let mut seen = HashSet::new();
        let mut unseen = HashSet::new();
        for (name, node) in listing.names {
            *looked += 1;
            if looked.is_multiple_of(PUMP_EVERY) {
                self.wait_for_room();
                if self.stopping() {
                    return None;
                }
            }
            let Ok(name) = name.into_string() else {
                // The name is shown as well as it can be, and stands for nothing else.
                let shown = format!("a name in /{directory}");
                self.left_out.add(&shown, NOT_UTF8);
                continue;
            };
            let path = joined(directory, &name);
            if let Some(reason) = ignored(&path) {
                self.left_out.add(&path, reason);
                continue;
            }
            let Ok(repo_path) = path.parse::<RepoPath>() else {
                self.left_out.add(&path, "its path has control characters or is too long");
                continue;
            };
            match node {
                Ok(Node::Directory) => {
                    folders.push(path);
                }
                Ok(node) => {
                    if self.consider(repo_path, node) {
                        seen.insert(path);
                    }
                }
                Err(error) if tree::says_gone(&error) => {}
                Err(error) => {
                    self.left_out.add(&path, format!("cannot be looked at: {error}"));
                    unseen.insert(path);
                }
            }
        }
        for known in self.now.clone().names_in(directory) {
            if !seen.contains(known.as_str()) && !unseen.contains(known.as_str()) {
                self.gone_itself(&known);
            }
        }
        let here: HashSet<&str> = folders.iter().map(String::as_str).collect();
        for known in self.now.clone().folders_in(directory) {
            if !here.contains(known.as_str()) && !unseen.contains(&known) {
                self.gone_beneath(&known);
            }
        }
        Some(folders)
    }

    /// Takes up what stands at a path; `false` when it is left out for good.
    fn consider(&mut self, path: RepoPath, node: Node) -> bool {
        match node {
            Node::File(found) => {
                self.consider_file(path, found);
                return true;
            }
            Node::Link(target) => match tree::checked_target(path.as_str(), target) {
                Ok(target) => {
                    self.forget_hashing(&path);
                    self.settle_file(&path);
                    self.stage(path, Staged::Link(target));
                    return true;
                }
                Err(reason) => self.left_out.add(path.as_str(), reason),
            },
            Node::Special => self.left_out.add(path.as_str(), "a device, pipe or socket"),
            Node::Directory => {}
        }
        self.gone_itself(&path);
        false
    }

    fn consider_file(&mut self, path: RepoPath, found: Found) {
        let stamp = found.stamp;
        if self.now.at(path.as_str()).is_some_and(|row| row.matches(&stamp)) {
            self.forget_hashing(&path);
            self.settle_file(&path);
            self.staged.remove(&path);
            return;
        }
        if matches!(self.staged.get(&path), Some(Staged::File(staged, _)) if *staged == stamp)
            || self.hashing.get(&path) == Some(&stamp)
        {
            return;
        }
        if let Some(sums) = self.carried_hash(&path, &stamp) {
            self.settle_file(&path);
            self.stage(path, Staged::File(stamp, sums));
            return;
        }
        if !self.is_quiet(&path, &found) {
            self.forget_hashing(&path);
            self.retry(&path, stamp);
            return;
        }
        if found.hard_linked {
            match self.twins.get_mut(&(found.device, stamp)) {
                Some(Twins::Known(sums)) => {
                    let sums = *sums;
                    self.settle_file(&path);
                    self.stage(path, Staged::File(stamp, sums));
                    return;
                }
                Some(Twins::Waiting(waiting)) => {
                    waiting.push((path.clone(), found));
                    self.hashing.insert(path, stamp);
                    return;
                }
                None => {
                    self.twins.insert((found.device, stamp), Twins::Waiting(Vec::new()));
                }
            }
        }
        let Some(tree) = self.tree.clone() else { return };
        self.hashing.insert(path.clone(), stamp);
        self.desk.leave(Job { tree, path, found });
    }

    /// Whether a file was left alone for long enough, by its own clock or by two looks at it.
    ///
    /// The modification time is not asked: mirrors set it to what it was elsewhere.
    fn is_quiet(&self, path: &RepoPath, found: &Found) -> bool {
        let changed = Duration::new(found.stamp.ctime.unsigned_abs(), found.stamp.ctime_nanos);
        let age = since_epoch().checked_sub(changed);
        age.is_some_and(|age| age >= self.options.quiet)
            || self.restless.get(path.as_str()).is_some_and(|restless| {
                restless.seen == found.stamp && restless.seen_at.elapsed() >= self.options.quiet
            })
    }

    fn gone(&mut self, path: &RepoPath) {
        self.gone_itself(path);
        self.gone_beneath(path.as_str());
    }

    fn gone_itself(&mut self, path: &RepoPath) {
        self.forget_hashing(path);
        self.restless.remove(path.as_str());
        self.stage(path.clone(), Staged::Gone);
    }

    fn gone_beneath(&mut self, directory: &str) {
        self.left_out.remove_beneath(directory);
        let start = format!("{directory}/");
        let mut gone: Vec<RepoPath> = self.now.beneath(directory);
        let from = (Bound::Included(start.as_str()), Bound::Unbounded);
        let waiting = self.staged.range::<str, _>(from).map(|(path, _)| path);
        gone.extend(waiting.take_while(|path| path.as_str().starts_with(&start)).cloned());
        let hashing = self.hashing.range::<str, _>(from).map(|(path, _)| path);
        gone.extend(hashing.take_while(|path| path.as_str().starts_with(&start)).cloned());
        for path in gone {
            self.gone_itself(&path);
        }
    }

    fn forget_hashing(&mut self, path: &RepoPath) {
        self.hashing.remove(path);
    }

    /// Lets the hash threads catch up, so that the list of jobs stays bounded.
    fn wait_for_room(&mut self) {
        self.pump();
        while self.desk.outstanding() >= BACKLOG_MAX && !self.stopping() {
            self.shared.bell.wait(BUSY_TICK);
            self.pump();
        }
    }

    /// Watches the tree, if it is not watched yet or the root's path now leads elsewhere.
    fn watch(&mut self) {
        let root = self.options.repo.canonicalize().unwrap_or_else(|_| self.options.repo.clone());
        if self.watching.as_ref().is_some_and(|watching| watching.root() == root) {
            return;
        }
        self.watching = None;
        match Watching::start(&root, Arc::clone(&self.shared.bell)) {
            Ok(watching) => {
                self.watching = Some(watching);
                self.left_out.settle(&Note::Watch);
            }
            Err(reason) => self.left_out.note(Note::Watch, reason),
        }
    }

    /// Whether the file system that a path is on is mounted as it was.
    fn is_still_mounted(&self, path: &str) -> bool {
        let Some(tree) = &self.tree else { return false };
        let mut above = parent(path).0;
        loop {
            if let Some(&device) = self.mounts.get(above) {
                return tree.device_of(above).is_ok_and(|found| found == device);
            }
            if above.is_empty() {
                return true;
            }
            above = parent(above).0;
        }
    }

    /// Records a mount point; `false` when what was mounted here is gone and nothing must be concluded from that.
    fn mount_is_plausible(&mut self, directory: &str, above: Option<u64>, listing: &Listing) -> bool {
        let known = self.mounts.get(directory).copied();
        let empty = listing.names.iter().all(|(name, _)| name.as_bytes() == b"lost+found");
        if known.is_some_and(|device| device != listing.device) && empty {
            let kept = self.now.beneath(directory).len();
            if kept > 0 {
                let text = format!(
                    "/{directory} was another file system and is empty now; is something not mounted? its {kept} \
                     files and links stay catalogued; if they are to go, put a file into it"
                );
                self.left_out.note(Note::Mount(directory.to_owned()), text);
                self.mounts_at = Some(Instant::now() + ROOT_RETRY);
                return false;
            }
        }
        self.left_out.settle(&Note::Mount(directory.to_owned()));
        if above == Some(listing.device) {
            self.mounts_changed |= self.mounts.remove(directory).is_some();
        } else if known != Some(listing.device) {
            self.mounts.insert(directory.to_owned(), listing.device);
            self.mounts_changed = true;
        }
        true
    }

    fn refuse_root(&mut self, error: &io::Error) {
        let kept = self.now.len();
        self.left_out.note(
            Note::Root,
            format!(
                "the repository {} cannot be read: {error}; its {kept} files stay catalogued",
                self.options.repo.display()
            ),
        );
        self.leave_root();
    }

    /// Concludes nothing until the root is back; the walk then finds whatever happened.
    fn leave_root(&mut self) {
        self.tree = None;
        self.watching = None;
        self.dirty.clear();
        self.restless.clear();
        self.walk_at = Instant::now() + self.options.rescan_every.min(ROOT_RETRY);
    }
}

/// Why a name is never catalogued: what a running rsync or NFS leaves lying about, and a file system's own.
fn ignored(path: &str) -> Option<&'static str> {
    let name = parent(path).1;
    if path.split('/').any(|segment| segment == ".~tmp~") || is_rsync_temporary(name) {
        return Some("a temporary file of rsync");
    }
    if name.starts_with(".nfs") && name.len() >= 20 {
        return Some("a deleted file that NFS still holds");
    }
    (name == "lost+found").then_some("the file system's own")
}

/// `.NAME.` and six letters and digits by chance: all lower-case letters would rather be a file's own ending.
fn is_rsync_temporary(name: &str) -> bool {
    let Some((stem, random)) = name.strip_prefix('.').and_then(|rest| rest.rsplit_once('.')) else {
        return false;
    };
    !stem.is_empty()
        && random.len() == 6
        && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && !random.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// Files waiting for a hash thread at most; a walk waits beyond that.
const BACKLOG_MAX: usize = 16_384;

/// Between two attempts at a root that cannot be read or a mount that is missing.
const ROOT_RETRY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_are_told_from_hidden_ones() {
        for path in [
            "pool/.a.deb.Xk31Zq",
            ".Packages.gz.a1B2c3",
            "x/.~tmp~/a.deb",
            ".nfs000000000123456700000001",
            "lost+found",
        ] {
            assert!(ignored(path).is_some(), "{path}");
        }
        for path in
            [".app.config", ".disk/info", "a.Xk31Zq", ".htaccess", ".a.deb.Xk31Zqq", ".nfs", "pool/found"]
        {
            assert!(ignored(path).is_none(), "{path}");
        }
    }
}
