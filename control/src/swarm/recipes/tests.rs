//! Recipes of real kinds of files, followed by a plain reading of what they say.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use freshet_api::recipe::Step;
use tempfile::TempDir;

use super::*;
use crate::catalog::{Catalog, CatalogOptions};
use crate::swarm::plan;

/// A repository with a catalogue and a maker of recipes.
struct Kitchen {
    repo: TempDir,
    state: TempDir,
    catalog: Arc<Catalog>,
    maker: RecipeMaker,
    known: u32,
}

impl Kitchen {
    fn new() -> Self {
        let (repo, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = CatalogOptions {
            quiet: Duration::ZERO,
            ..CatalogOptions::new(repo.path(), state.path().join("catalog.redb"))
        };
        let catalog = Catalog::open(options).unwrap();
        let maker = RecipeMaker::open(state.path(), 64 << 20, Patterns::default()).unwrap();
        Self { repo, state, catalog, maker, known: 0 }
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.repo.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path.with_extension("new~"), bytes).unwrap();
        std::fs::rename(path.with_extension("new~"), path).unwrap();
    }

    /// Catalogues what is there and makes recipes for what is new.
    fn cook(&mut self) -> Cooked {
        let walk = self.catalog.rescan();
        let walks = self.catalog.walks();
        let deadline = Instant::now() + Duration::from_secs(30);
        while *walks.borrow() < walk {
            assert!(Instant::now() < deadline, "the walk did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let state = Arc::clone(&self.catalog.load());
        let sources = plan::new_contents(&state, self.known, &HashSet::new(), &HashSet::new());
        self.known = state.iter().map(|entry| entry.file.0).max().unwrap();
        let repository = Repository::open(self.repo.path()).unwrap();
        let keepable = self.maker.keepable(&sources);
        let cooked = self.maker.make(sources, &state, &repository, || false);
        self.maker.keep(&keepable, &state, &repository);
        cooked
    }

    /// What the recipe for `target` makes of `known` contents, and its bytes.
    fn follow(&self, cooked: &Cooked, target: &[u8], known: &[&[u8]]) -> (Vec<u8>, u64) {
        let content = ContentHash::from(blake3::hash(target));
        let named = cooked.recipes.iter().find(|recipe| recipe.target == content).expect("there is a recipe");
        let source = cooked.sources.iter().find(|source| source.content == named.recipe).unwrap();
        let wire = source.made.as_ref().unwrap();
        assert_eq!((wire.len() as u64, named.target_size), (named.recipe_size, target.len() as u64));
        assert!(cooked.sources.iter().all(|source| source.content != content), "it is not copied as well");
        let recipe = Recipe::decode(wire).unwrap();
        assert_eq!(recipe.bases, named.bases);
        let known: HashMap<ContentHash, &[u8]> =
            known.iter().map(|bytes| (ContentHash::from(blake3::hash(bytes)), *bytes)).collect();
        let bases: Vec<&[u8]> = recipe.bases.iter().map(|base| known[base]).collect();
        let mut made = Vec::new();
        match recipe.method {
            Method::Patch { delta } => {
                let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(&delta[..], bases[0]).unwrap();
                decoder.window_log_max(28).unwrap();
                decoder.read_to_end(&mut made).unwrap();
            }
            Method::Extents { steps, literals } => {
                let literals = zstd::decode_all(&literals[..]).unwrap();
                let mut literals = &literals[..];
                for step in steps {
                    match step {
                        Step::Copy { base, offset, length } => {
                            made.extend(&bases[base as usize][offset as usize..][..length as usize]);
                        }
                        Step::Literal { length } => {
                            let (now, rest) = literals.split_at(length as usize);
                            made.extend(now);
                            literals = rest;
                        }
                    }
                }
            }
        }
        (made, named.recipe_size)
    }
}

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; length];
    reader.fill(&mut bytes);
    bytes
}

fn packages(versions: impl Fn(usize) -> usize) -> Vec<u8> {
    let stanza = |n: usize| {
        format!(
            "Package: lib{n}\nVersion: {}.{}\nSHA256: {}\nFilename: pool/main/l/lib{n}.deb\n\n",
            versions(n),
            n % 7,
            blake3::hash(&[(n % 251) as u8, (n / 251) as u8, versions(n) as u8])
        )
    };
    (0..4_000).map(stanza).collect::<String>().into_bytes()
}

#[test]
fn a_changed_index_costs_a_fiftieth_and_what_is_compressed_is_not_tried() {
    let mut kitchen = Kitchen::new();
    let old = packages(|_| 1);
    let path = "dists/stable/main/binary-amd64/Packages";
    kitchen.put(path, &old);
    kitchen.put("dists/stable/main/binary-amd64/Packages.xz", &noise(1, 90_000));
    let first = kitchen.cook();
    assert!(first.recipes.is_empty() && first.sources.len() == 2, "there is no older version");
    let new = packages(|n| if n % 100 == 5 { 2 } else { 1 });
    kitchen.put(path, &new);
    kitchen.put("dists/stable/main/binary-amd64/by-hash/SHA256/0123", &new);
    kitchen.put("dists/stable/main/binary-amd64/Packages.xz", &noise(2, 90_000));
    let second = kitchen.cook();
    let (made, bytes) = kitchen.follow(&second, &new, &[&old]);
    assert!(made == new && second.recipes.len() == 1);
    assert!(bytes * 50 <= new.len() as u64, "{bytes} of {}", new.len());

    // The older version survives a restart; a damaged one is only no help.
    let third = packages(|n| if n % 90 == 5 { 3 } else { 1 });
    kitchen.maker = RecipeMaker::open(kitchen.state.path(), 64 << 20, Patterns::default()).unwrap();
    kitchen.put(path, &third);
    let cooked = kitchen.cook();
    assert_eq!(kitchen.follow(&cooked, &third, &[&new]).0, third);
    for entry in std::fs::read_dir(kitchen.state.path().join("keepsakes")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "index.json" {
            std::fs::write(path, b"torn").unwrap();
        }
    }
    kitchen.put(path, &old);
    assert!(kitchen.cook().recipes.is_empty());
}

#[test]
fn an_image_is_copies_of_the_files_in_it() {
    let mut kitchen = Kitchen::new();
    let files: Vec<Vec<u8>> = (0..40).map(|n| noise(n, 30_000 + 1_777 * n as usize)).collect();
    for (n, file) in files.iter().enumerate() {
        kitchen.put(&format!("pool/main/p{n}.deb"), file);
    }
    // The same beginning as another file, and a file that is in no image.
    let mut alike = files[3].clone();
    alike.truncate(20_000);
    kitchen.put("pool/main/alike.deb", &alike);
    kitchen.put("pool/main/other.deb", &noise(99, 50_000));
    let mut image = vec![0u8; 32 << 10];
    for file in &files {
        image.extend(file);
        image.resize(image.len().next_multiple_of(2048), 0);
    }
    image.extend(noise(7, 5_000));
    // One of an older version, of which the first half is the same.
    let mut older = files[5].clone();
    older[20_000..].reverse();
    image.resize(image.len().next_multiple_of(2048), 0);
    image.extend(&older);
    kitchen.put("iso/install.iso", &image);
    let cooked = kitchen.cook();
    let known: Vec<&[u8]> = files.iter().map(Vec::as_slice).chain([alike.as_slice()]).collect();
    let (made, bytes) = kitchen.follow(&cooked, &image, &known);
    assert!(made == image);
    // Directory records and padding are next to nothing; noise and the changed half are what they are.
    let literal = 5_000 + older.len() as u64 - 20_000;
    assert!(bytes < literal + literal / 10 + 4_000, "{bytes}, of which {literal} are new");
    let unlike = noise(1_000, 600_000);
    kitchen.put("iso/unlike.iso", &unlike);
    let cooked = kitchen.cook();
    assert!(cooked.recipes.is_empty() && cooked.sources.len() == 1);
}

#[test]
fn an_archive_is_patched_against_the_version_before_by_its_name() {
    let mut kitchen = Kitchen::new();
    let member = |n: u64| noise(n, 40_000);
    let archive =
        |changed: u64| (0..20).flat_map(|n| member(if n == 7 { changed } else { n })).collect::<Vec<u8>>();
    let (old, new) = (archive(7), archive(700));
    kitchen.put("wheels/tool-1.0-py3-none-any.whl", &old);
    kitchen.put("wheels/tool-1.0-cp39-win.whl", &noise(50, 60_000));
    kitchen.put("wheels/toolbox-1.0-py3-none-any.whl", &noise(51, 60_000));
    assert!(kitchen.cook().recipes.is_empty());
    kitchen.put("wheels/tool-1.1-py3-none-any.whl", &new);
    kitchen.put("wheels/tool-1.1.tar.xz", &noise(52, 60_000));
    let cooked = kitchen.cook();
    let (made, bytes) = kitchen.follow(&cooked, &new, &[&old]);
    assert!(made == new && bytes < 45_000, "{bytes}");
    assert_eq!(cooked.recipes.len(), 1);
}
