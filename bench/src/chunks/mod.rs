//! `bench chunks`: which size of chunks a mirror should be kept current with, and why none is right.
//!
//! Small chunks find more in the version that a mirror has, and cost more round trips, heads and hashes on their way;
//! large ones the other way round (Shah et al., section 3). Measured here on consecutive versions of real packages:
//! what is found by chunk size, how a swarm does with pieces of that size (virtual time, over the leases and pickers
//! that the daemons use), and both together; beside it what Freshet does: recipes made at whatever grain finds most,
//! and pieces on a grid that suits the links.

mod pairs;
mod report;
mod rolling;
mod swarm;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use freshet_api::Bytes;
use freshet_policy::swarm::piece_size;

use self::pairs::{Fetch, Pair};
use self::report::Found;
pub(crate) use self::report::{Report, Way};
use self::swarm::{Field, HEAD_BYTES};

/// Options of `bench chunks`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A file and its next version, or directories of such; may be given more than once. Without it, consecutive
    /// versions of packages are fetched with pip and apt-get.
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], action = clap::ArgAction::Append)]
    pair: Vec<PathBuf>,
    /// How many mirrors the swarm has.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=100))]
    mirrors: u32,
    /// Links of the origin and of the mirrors, Mbit/s in both directions.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    mbit: u32,
    /// From a request to its answer's first byte, milliseconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    round_trip: u32,
    /// Where report.json and the plot go.
    #[arg(long, value_name = "DIR", default_value = "target/bench/chunks")]
    out: PathBuf,
}

/// A chunk size that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Size {
    /// The square root of each file's size, as rsync has it.
    Root,
    /// The same for all files.
    Fixed(usize),
}

impl Size {
    fn of(self, file: u64) -> usize {
        match self {
            Self::Root => rolling::rsync_block(file),
            Self::Fixed(bytes) => bytes,
        }
    }

    fn label(self) -> String {
        match self {
            Self::Root => "sqrt(size)".to_owned(),
            Self::Fixed(bytes) if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
            Self::Fixed(bytes) => format!("{} KiB", bytes >> 10),
        }
    }
}

/// Measures, and writes the report.
///
/// # Errors
/// When there is nothing to measure, or a file cannot be read or the report written.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let report = measure(arguments, &gather(arguments)?)?;
    fs::create_dir_all(&arguments.out)?;
    fs::write(arguments.out.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    fs::write(arguments.out.join("chunks.svg"), report.plot()?)?;
    print!("{}", report.table());
    println!("report: {}", arguments.out.display());
    Ok(())
}

/// The same for other measurements: of all that the package managers offer the smaller packages only, and a swarm as
/// when nothing is given.
///
/// # Errors
/// As [`run`].
pub(crate) fn of_small_packages() -> Result<Report> {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        arguments: Arguments,
    }
    let Defaults { arguments } = clap::Parser::try_parse_from(["chunks"])?;
    let mut pairs = pairs::fetched(&versions()?, Fetch::Small, &mut |step| eprintln!("{step}"))?;
    pairs.retain(|pair| fs::metadata(&pair.new).is_ok_and(|new| new.len() <= SMALL_BYTES_MAX));
    measure(&arguments, &pairs)
}

fn measure(arguments: &Arguments, pairs: &[Pair]) -> Result<Report> {
    let field = Field {
        mirrors: arguments.mirrors,
        rate: f64::from(arguments.mbit) * 125_000.0,
        round_trip: f64::from(arguments.round_trip) / 1e3,
    };
    let mut kinds: BTreeMap<String, Found> = BTreeMap::new();
    let mut all = Found::new(SIZES.len());
    for pair in pairs {
        let found = compare(pair)?;
        eprintln!("{}: {}", pair.name, found.line());
        kinds.entry(pair.kind.clone()).or_insert_with(|| Found::new(SIZES.len())).add(&found);
        all.add(&found);
    }
    ensure!(all.bytes > 0, "all files are as they were; give versions that differ");
    let mut ways: Vec<Way> = Vec::new();
    for (number, size) in SIZES.iter().enumerate() {
        let chunks = all.chunks[number];
        let mean = all.bytes / chunks.max(1);
        // Who looks for chunks must be told their hashes, the found ones' too.
        let left = all.bytes - all.found[number];
        let listed = left as f64 + chunks as f64 * HASH_BYTES;
        ways.push(way(&field, size.label(), left, listed, mean.max(1)));
    }
    let grid = piece_size(Bytes(all.moved), field.mirrors as usize).0;
    let label = format!("recipes, {} KiB grid", grid >> 10);
    let listed = all.moved as f64 + (all.moved / grid + 1) as f64 * HASH_BYTES;
    ways.push(way(&field, label, all.moved, listed, grid));
    let sizes: Vec<String> = SIZES.iter().map(|size| size.label()).collect();
    Ok(Report { field, files: pairs.len(), sizes, kinds, all, ways })
}

fn gather(arguments: &Arguments) -> Result<Vec<Pair>> {
    if arguments.pair.is_empty() {
        return pairs::fetched(&versions()?, Fetch::All, &mut |step| eprintln!("{step}"));
    }
    let (pairs, _) = arguments.pair.as_chunks::<2>();
    let given = pairs.iter().map(|[old, new]| pairs::given(old, new)).collect::<Result<Vec<_>>>()?;
    Ok(given.into_iter().flatten().collect())
}

/// Where versions that were fetched are kept.
fn versions() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).context("expected this program in a target directory")?;
    Ok(target.join("freshet/versions"))
}

/// What of a file is found in its older version.
fn compare(pair: &Pair) -> Result<Found> {
    let read = |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (old, new) = (read(&pair.old)?, read(&pair.new)?);
    let mut found = Found::new(SIZES.len());
    if old == new {
        // Identical contents are a link, whatever moves the others.
        found.identical = 1;
        return Ok(found);
    }
    let size = new.len() as u64;
    found.bytes = size;
    for (number, chunk) in SIZES.iter().enumerate() {
        let chunk = chunk.of(size);
        found.found[number] = rolling::found(&old, &new, chunk);
        found.chunks[number] = size.div_ceil(chunk as u64);
    }
    found.recipe = patch(&old, &new)?.len() as u64;
    found.moved = if found.recipe * 2 < size { found.recipe } else { size };
    Ok(found)
}

/// The frame that makes `new` where `old` is known, made as control makes recipes of archives and indexes.
fn patch(old: &[u8], new: &[u8]) -> io::Result<Vec<u8>> {
    let both = old.len() + new.len();
    let window_log = (usize::BITS - both.leading_zeros()).clamp(17, 28);
    let level = if both <= 24 << 20 { 12 } else { 3 };
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(Vec::new(), level, old)?;
    encoder.window_log(window_log)?;
    encoder.long_distance_matching(true)?;
    encoder.set_pledged_src_size(Some(new.len() as u64))?;
    encoder.write_all(new)?;
    encoder.finish()
}

/// Copies what is left, and the list of hashes, in pieces of this size.
fn way(field: &Field, label: String, left: u64, listed: f64, piece: u64) -> Way {
    eprintln!("{label}: a swarm of {} copies {:.1} MB", field.mirrors, listed / 1e6);
    let pace = field.copy(listed, piece);
    let requests = (listed / piece as f64).ceil();
    Way {
        label,
        piece,
        left,
        requests: requests as u64,
        overhead: (listed - left as f64 + requests * HEAD_BYTES) / (left as f64).max(1.0),
        efficiency: pace.efficiency,
        copies: pace.copies,
        secs: field.secs_min(listed) / pace.efficiency,
    }
}

/// What is taken when small packages will do.
const SMALL_BYTES_MAX: u64 = 10_000_000;
/// A chunk's hash, and the sum by which it is looked for.
const HASH_BYTES: f64 = 36.0;

/// From the square root of the size to 1 MiB.
const SIZES: &[Size] = &[
    Size::Root,
    Size::Fixed(4 << 10),
    Size::Fixed(16 << 10),
    Size::Fixed(64 << 10),
    Size::Fixed(256 << 10),
    Size::Fixed(1 << 20),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_found_in_part_and_a_recipe_takes_less() {
        let place = tempfile::tempdir().unwrap();
        let mut draw = freshet_policy::draw::Draw::new(5);
        let old: Vec<u8> = (0..400_000).map(|_| draw.below(256) as u8).collect();
        let mut new = old.clone();
        for at in (0..400_000).step_by(40_000) {
            new[at] ^= 0x55;
        }
        let [first, second] = ["old", "new"].map(|name| place.path().join(name));
        fs::write(&first, &old).unwrap();
        fs::write(&second, &new).unwrap();
        let pairs = pairs::given(&first, &second).unwrap();
        let found = compare(&pairs[0]).unwrap();
        assert!(found.found.is_sorted_by(|a, b| a >= b), "{:?}", found.found);
        assert!(found.found[0] > 390_000 && found.found[5] == 0, "{:?}", found.found);
        assert!(found.recipe < 2_000 && found.moved == found.recipe, "{}", found.recipe);
        let same = compare(&Pair { new: first, ..pairs[0].clone() }).unwrap();
        assert_eq!((same.identical, same.bytes), (1, 0));
    }
}
