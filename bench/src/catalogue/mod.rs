//! `bench catalogue`: what a catalogue of a large mirror costs: bytes on the wire, time to load, memory.
//!
//! The catalogue is made: sizes, identical contents and distributions are those of `bench trace synth`, names and times
//! look like those of real mirrors. It is encoded by the code that control uses, and taken in by the programs
//! themselves (`dataplane weigh`, `control weigh`), each in a process of its own whose memory the kernel tells.

mod names;
mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use freshet_api::manifest::{Files, Manifest, ManifestFile};
use freshet_api::{ContentHash, FileId};
use freshet_policy::draw::Draw;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::names::Distribution;
use self::report::{OnWire, Report};
use crate::ground;
use crate::trace::{FileKind, Recipe, Synthesis};

/// Options of `bench catalogue`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Files of the catalogue.
    #[arg(long, default_value_t = 2_200_000, value_parser = clap::value_parser!(u32).range(10_000..=10_000_000))]
    files: u32,
    /// Files that the difference adds, replaces and removes.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    changes: u32,
    /// How often each program takes it in.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where `dataplane` and `control` are; otherwise beside this program.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where report.json goes.
    #[arg(long, value_name = "DIR", default_value = "target/bench/catalogue")]
    out: PathBuf,
}

/// What `dataplane weigh` says.
#[derive(Clone, Copy, Debug, Deserialize, serde::Serialize)]
struct Volunteer {
    files: u64,
    decode_secs: f64,
    accept_secs: f64,
    resident: u64,
    resident_max: u64,
    find_nanos: f64,
    find_content_nanos: f64,
    batch_micros: f64,
}

/// What `control weigh` says.
#[derive(Clone, Copy, Debug, Deserialize, serde::Serialize)]
struct Control {
    files: u64,
    directories: u64,
    fill_secs: f64,
    resident: u64,
    find_nanos: f64,
    change_micros: f64,
    manifest_secs: f64,
}

/// Makes the catalogue, measures, and writes the report.
///
/// # Errors
/// When a program is missing or fails, or the report cannot be written.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let programs = ground::programs(arguments.programs.as_deref())?;
    let scratch = tempfile::Builder::new().prefix("freshet-catalogue-").tempdir()?;
    eprintln!("a catalogue of {} files", arguments.files);
    let files = make(arguments.files, arguments.seed);
    let described = report::describe(&files);
    let mut manifest = Manifest { sequence: 1, files, ..Manifest::default() };
    let started = Instant::now();
    let wire = manifest.encode()?;
    let encode_secs = started.elapsed().as_secs_f64();
    ensure!(Manifest::decode(&wire)? == manifest, "the manifest is not read back as it was written");
    let path = scratch.path().join("manifest");
    std::fs::write(&path, &wire)?;
    let difference = changed(&manifest.files, arguments.changes, arguments.seed).encode()?;
    manifest.files = Files::default();
    let on_wire = OnWire {
        encode_secs,
        wire_bytes: wire.len() as u64,
        changes: arguments.changes,
        difference_bytes: difference.len() as u64,
    };
    drop((wire, manifest));
    let mut report = Report::new(described, on_wire);
    for round in 1..=arguments.rounds {
        eprintln!("round {round}: a volunteer takes it in, control catalogues it");
        report.volunteer(weighed(&programs, "dataplane", &path)?);
        report.control(weighed(&programs, "control", &path)?);
    }
    std::fs::create_dir_all(&arguments.out)?;
    std::fs::write(arguments.out.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    print!("{}", report.table());
    println!("report: {}", arguments.out.display());
    Ok(())
}

/// The files in the order of their paths, numbered in it, as a first walk over the tree does.
fn make(count: u32, seed: u64) -> Files {
    let recipe = Recipe { days: 0.0, requests_per_day: 1.0, files: count, seed };
    let synthesis = Synthesis::new(recipe);
    let mut distributions: Vec<Distribution> =
        (0..10).map(|number| Distribution::new(number, seed)).collect();
    let mut named = BTreeMap::new();
    for file in &synthesis.repository().files {
        let distribution = &mut distributions[usize::from(file.distribution) % 10];
        let name = match file.kind {
            FileKind::Image => distribution.image(),
            _ => distribution.package(),
        };
        named.insert(name.path, (name.mtime, name.last, file.size, file.content));
    }
    let rows = (1..).zip(named).map(|(number, (path, (mtime, last, size, content)))| ManifestFile {
        file: FileId(number),
        path: path.parse().expect("names are paths"),
        size,
        mtime,
        content: content_of(u64::from(content), seed),
        last,
    });
    rows.collect()
}

/// What changes overnight: of the changes seven in ten are new versions under new names, with the old ones gone, two
/// are indexes that change in place, one is a removal.
fn changed(files: &Files, changes: u32, seed: u64) -> Manifest {
    let mut draw = Draw::new(seed ^ 0x6469_6666);
    let picked: std::collections::BTreeSet<usize> = {
        let mut picked = std::collections::BTreeSet::new();
        while picked.len() < (changes as usize).min(files.len()) {
            // What changes together stands side by side: the binaries of a source.
            let first = draw.below(files.len());
            picked
                .extend((first..files.len()).take((1 + draw.below(12)).min(changes as usize - picked.len())));
        }
        picked
    };
    let mut manifest = Manifest { sequence: 2, base: Some(1), ..Manifest::default() };
    let mut number = files.len() as u32;
    let now = files.iter().map(|file| file.mtime).max().unwrap_or(0);
    for (position, file) in files.iter().enumerate().filter(|(position, _)| picked.contains(position)) {
        manifest.removed_files.push(file.file);
        let path = match position % 10 {
            0 => continue,
            1 | 2 => file.path,
            _ => newer(file.path.as_str()).parse().expect("a digit more is as good"),
        };
        number += 1;
        let content = content_of(u64::from(number) << 32, seed);
        let mtime = now + draw.below(14_400) as i64;
        manifest.files.push(ManifestFile { file: FileId(number), path, mtime, content, ..file });
    }
    manifest
}

/// The name of the next version: its first digit behind the name counts on.
fn newer(path: &str) -> String {
    let name = path.rfind('/').map_or(0, |at| at + 1);
    let version = path[name..].find(['_', '-']).map_or(path.len(), |at| name + at + 1);
    format!("{}1{}", &path[..version], &path[version..])
}

fn content_of(number: u64, seed: u64) -> ContentHash {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&seed.to_le_bytes());
    ContentHash::of(&bytes)
}

/// What a program says of the manifest.
fn weighed<T: DeserializeOwned>(programs: &Path, name: &str, manifest: &Path) -> Result<T> {
    let program = programs.join(name);
    let output = Command::new(&program).arg("weigh").arg(manifest).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} weigh ended with {}: {}",
        program.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{name} weigh said something else than figures"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_fits_the_catalogue_it_is_for() {
        let files = make(20_000, 3);
        assert!(files.len() > 19_900, "{} different paths", files.len());
        assert!(make(20_000, 3) == files && make(20_000, 4) != files);
        let difference = changed(&files, 1_000, 3);
        assert_eq!(difference.removed_files.len(), 1_000);
        assert!((850..950).contains(&difference.files.len()), "{}", difference.files.len());
        let known: std::collections::HashSet<FileId> = files.iter().map(|file| file.file).collect();
        assert!(difference.removed_files.iter().all(|file| known.contains(file)));
        assert!(difference.files.iter().all(|file| !known.contains(&file.file)));
        let read = Manifest::decode(&difference.encode().unwrap()).unwrap();
        assert_eq!(read.removed_files, difference.removed_files);
    }

    #[test]
    fn a_newer_version_has_another_name() {
        assert_eq!(newer("pool/a/lib-x_1.2-1_amd64.deb"), "pool/a/lib-1x_1.2-1_amd64.deb");
        assert_eq!(newer("Release"), "Release1");
    }
}
