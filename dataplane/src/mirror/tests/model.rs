//! A model of the origin, a mirror that follows it, and random walks of both that must end alike.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use freshet_api::manifest::{Manifest, ManifestFile, ManifestLink};
use freshet_api::{ContentHash, FileId};
use proptest::prelude::*;

use super::super::{Arrived, Finished, Mirror, MirrorError, MirrorOptions, ReceiveError, Want};

/// What stands at a path.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    File { content: Vec<u8>, mtime: i64, last: bool },
    Link(String),
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            // Whether it is an index can't be seen in a tree.
            (Self::File { content, mtime, .. }, Self::File { content: c, mtime: m, .. }) => {
                (content, mtime) == (c, m)
            }
            (Self::Link(target), Self::Link(t)) => target == t,
            _ => false,
        }
    }
}

pub(super) type Model = BTreeMap<String, Entry>;

pub(super) struct Bench {
    directory: tempfile::TempDir,
    root: Option<PathBuf>,
    mirror: Option<Arc<Mirror>>,
    runtime: tokio::runtime::Runtime,
    contents: HashMap<ContentHash, Vec<u8>>,
    sequence: u64,
    next_file: u32,
    rows: BTreeMap<String, ManifestFile>,
    links: BTreeMap<String, String>,
    /// Contents that went through [`Mirror::receive`].
    pub(super) received: usize,
}

impl Bench {
    pub(super) fn new() -> Self {
        let mut bench = Self {
            directory: tempfile::tempdir().unwrap(),
            root: None,
            mirror: None,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            contents: HashMap::new(),
            sequence: 0,
            next_file: 0,
            rows: BTreeMap::new(),
            links: BTreeMap::new(),
            received: 0,
        };
        bench.open();
        bench
    }

    /// On another filesystem than the temporary directory's.
    pub(super) fn on(path: &std::path::Path) -> Self {
        let mut bench = Self::new();
        bench.close();
        bench.root = Some(path.to_owned());
        bench.open();
        bench
    }

    fn root(&self) -> &std::path::Path {
        self.root.as_deref().unwrap_or(self.directory.path())
    }

    pub(super) fn options(&self) -> MirrorOptions {
        MirrorOptions { reserve_bytes: 0, ..MirrorOptions::new(self.state(), self.tree()) }
    }

    pub(super) fn state(&self) -> PathBuf {
        self.root().join("state")
    }

    pub(super) fn tree(&self) -> PathBuf {
        self.root().join("tree")
    }

    pub(super) fn open(&mut self) {
        self.mirror = Some(Mirror::open(self.options()).unwrap());
    }

    pub(super) fn close(&mut self) {
        let mirror = self.mirror.take().unwrap();
        assert_eq!(Arc::strong_count(&mirror), 1);
    }

    pub(super) fn reopen(&mut self) {
        self.close();
        self.open();
    }

    pub(super) fn mirror(&self) -> &Arc<Mirror> {
        self.mirror.as_ref().unwrap()
    }

    /// Makes `model` the mirror's target by a difference (or a snapshot, for the first).
    pub(super) fn accept(&mut self, model: &Model) {
        self.try_accept(model).unwrap();
        self.mirror().publish_ready().unwrap();
    }

    pub(super) fn try_accept(&mut self, model: &Model) -> Result<(), MirrorError> {
        let base = (self.sequence > 0).then_some(self.sequence);
        let (old_rows, old_links) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.links));
        for (path, entry) in model {
            match entry {
                Entry::Link(target) => drop(self.links.insert(path.clone(), target.clone())),
                Entry::File { content, mtime, last } => {
                    let identity = ContentHash::of(content);
                    self.contents.insert(identity, content.clone());
                    let known = old_rows.get(path).filter(|row| row.content == identity).map(|row| row.file);
                    let file = known.unwrap_or_else(|| {
                        self.next_file += 1;
                        FileId(self.next_file)
                    });
                    let size = content.len() as u64;
                    let row = ManifestFile {
                        file,
                        path: path.parse().unwrap(),
                        size,
                        mtime: *mtime,
                        content: identity,
                        last: *last,
                    };
                    self.rows.insert(path.clone(), row);
                }
            }
        }
        self.sequence += 1;
        let mut manifest = self.snapshot();
        manifest.base = base;
        manifest.files.retain(|row| old_rows.get(row.path.as_str()) != Some(row));
        manifest.links.retain(|link| old_links.get(link.path.as_str()) != Some(&link.target));
        let stays =
            |old: &ManifestFile| self.rows.get(old.path.as_str()).is_some_and(|row| row.file == old.file);
        manifest.removed_files = old_rows.values().filter(|old| !stays(old)).map(|old| old.file).collect();
        let gone = old_links.keys().filter(|path| !self.links.contains_key(*path));
        manifest.removed_links = gone.map(|path| path.parse().unwrap()).collect();
        // After a lost index the mirror has nothing to apply a difference to.
        let manifest = if self.mirror().target() == base { manifest } else { self.snapshot() };
        self.mirror().accept(&manifest)
    }

    pub(super) fn snapshot(&self) -> Manifest {
        let link = |(path, target): (&String, &String)| ManifestLink {
            path: path.parse().unwrap(),
            target: target.clone(),
        };
        Manifest {
            sequence: self.sequence,
            files: self.rows.values().cloned().collect(),
            links: self.links.iter().map(link).collect(),
            ..Manifest::default()
        }
    }

    pub(super) fn bring(&mut self, model: &Model) {
        self.accept(model);
        self.receive_all();
        assert_eq!(self.mirror().finish().unwrap(), Finished::Complete);
    }

    pub(super) fn receive_all(&mut self) {
        let wants = self.mirror().missing();
        self.receive(wants);
    }

    pub(super) fn receive(&mut self, wants: Vec<Want>) {
        self.try_receive(wants).unwrap();
    }

    pub(super) fn try_receive(&mut self, wants: Vec<Want>) -> Result<(), MirrorError> {
        let local = self.mirror().survey(&wants)?;
        let mut batch = Vec::new();
        for want in wants {
            let arrived = if local.contains(&want.content) { self.mirror().take_local(&want)? } else { None };
            batch.push(match arrived {
                Some(arrived) => arrived,
                None => {
                    let content = self.contents[&want.content].clone();
                    self.received += 1;
                    self.feed(&want, &content).map_err(|error| match error {
                        ReceiveError::Mirror(error) => error,
                        other => panic!("{other}"),
                    })?
                }
            });
        }
        self.mirror().commit(batch)
    }

    fn feed(&self, want: &Want, content: &[u8]) -> Result<Arrived, ReceiveError> {
        let mut incoming = self.mirror().receive(want)?;
        self.runtime.block_on(async {
            let rest = &content[usize::try_from(incoming.received()).unwrap()..];
            for part in rest.chunks(50_000) {
                incoming.write(part).await?;
            }
            incoming.finish().await
        })
    }

    /// All that is in the tree, read without the mirror.
    pub(super) fn walk(&self) -> Model {
        let mut found = Model::new();
        let mut directories = vec![self.tree()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.tree()).unwrap().to_str().unwrap().to_owned();
                let metadata = std::fs::symlink_metadata(&path).unwrap();
                if metadata.is_dir() {
                    directories.push(path);
                } else if metadata.is_symlink() {
                    let target = std::fs::read_link(&path).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, Entry::Link(target));
                } else {
                    let content = std::fs::read(&path).unwrap();
                    found.insert(name, Entry::File { content, mtime: metadata.mtime(), last: false });
                }
            }
        }
        found
    }

    /// What the mirror says must be what the tree is.
    fn check(&self, model: &Model) {
        assert_eq!(self.walk(), *model);
        let progress = self.mirror().progress();
        let files = model.values().filter(|entry| matches!(entry, Entry::File { .. })).count() as u64;
        assert_eq!((progress.files_held, progress.files_missing, progress.bytes_missing), (files, 0, 0));
        assert_eq!(self.mirror().holdings(), self.rows.values().map(|row| row.file.0).collect());
        for row in self.rows.values() {
            let held = self.mirror().find(row.path.as_str().as_bytes()).unwrap();
            assert_eq!((held.file, held.content, held.mtime), (row.file, row.content, row.mtime));
            let blob = self.mirror().blobs_directory().join(std::str::from_utf8(&held.blob).unwrap());
            assert_eq!(ContentHash::of(&std::fs::read(blob).unwrap()), row.content);
            assert!(self.mirror().find_content(&held.content).is_some());
        }
        // Deltas lead to the same.
        let delta = self.mirror().delta();
        self.mirror().acknowledge(&delta);
        assert_eq!(delta.count, files);
    }
}

/// How a step of a random walk ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Whole,
    /// Killed after the manifest was taken over.
    KilledEarly,
    /// Killed after this share of the contents (in quarters), some of them half-received.
    KilledBetween(u8),
    /// Another manifest comes before this one is complete.
    Overtaken,
}

fn a_model() -> impl Strategy<Value = Model> {
    // Few names, so that files, directories and links meet.
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|segments| segments.join("/"));
    let file = (0u8..8, any::<bool>()).prop_map(|(content, last)| {
        // One time per content, as the tree can show one only. Some are large enough for a partial file.
        let length = if content % 4 == 0 { 300_000 } else { usize::from(content) };
        Entry::File { content: vec![content; length], mtime: 1_000 + i64::from(content), last }
    });
    let link =
        prop::sample::select(vec!["a", "b", "./c", "a/b"]).prop_map(|target| Entry::Link(target.to_owned()));
    let entry = prop_oneof![5 => file, 1 => link];
    prop::collection::vec((path, entry), 0..12).prop_map(|entries| {
        let mut model = Model::new();
        for (path, entry) in entries {
            let below = format!("{path}/");
            let above = path.match_indices('/').any(|(end, _)| model.contains_key(&path[..end]));
            if !above && !model.keys().any(|other| other.starts_with(&below)) {
                model.insert(path, entry);
            }
        }
        model
    })
}

fn an_end() -> impl Strategy<Value = End> {
    prop_oneof![
        3 => Just(End::Whole),
        1 => Just(End::KilledEarly),
        2 => (0u8..5).prop_map(End::KilledBetween),
        1 => Just(End::Overtaken),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]
    #[test]
    fn every_walk_ends_in_the_manifests_tree(
        steps in prop::collection::vec((a_model(), an_end()), 1..6),
    ) {
        let mut bench = Bench::new();
        for (model, end) in steps {
            bench.accept(&model);
            match end {
                End::Whole => {}
                End::KilledEarly => bench.reopen(),
                End::KilledBetween(quarters) => {
                    let mut wants = bench.mirror().missing();
                    let rest = wants.split_off(wants.len() * usize::from(quarters) / 4);
                    bench.receive(wants);
                    if let Some(want) = rest.iter().find(|want| want.size > 100_000) {
                        let half = vec![bench.contents[&want.content][0]; 100_000];
                        let mut incoming = bench.mirror().receive(want).unwrap();
                        bench.runtime.block_on(async {
                            incoming.write(&half).await.unwrap();
                            incoming.park().await.unwrap();
                        });
                    }
                    if quarters == 4 {
                        // The batch reached the disk, the index did not hear of it.
                        let index = std::fs::read(bench.state().join("index.redb")).unwrap();
                        bench.mirror().finish().unwrap();
                        bench.close();
                        let mut file = std::fs::File::create(bench.state().join("index.redb")).unwrap();
                        file.write_all(&index).unwrap();
                        bench.open();
                    } else {
                        bench.reopen();
                    }
                }
                End::Overtaken => continue,
            }
            while bench.mirror().recheck(|| true).unwrap() != super::Rechecked::default() {}
            bench.mirror().publish_ready().unwrap();
            bench.receive_all();
            prop_assert_eq!(bench.mirror().finish().unwrap(), Finished::Complete);
            bench.check(&model);
            bench.mirror().sweep(std::time::Duration::ZERO).unwrap();
            bench.check(&model);
        }
    }
}
