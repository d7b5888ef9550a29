//! Claim 3: ordinary tools get what they ask for from volunteers, and find out who lies.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freshet_testbed::repository::{Repository, RepositoryFile, Selection};
use freshet_testbed::{Host, Program};
use serde_json::Value;

use super::stage::{Donor, Stage};
use super::{Ground, installed};
use crate::report::{Claim, Document, Measured, Table, cells};
use crate::spread::Spread;
use crate::sync::liar::{Liar, Port};
use crate::tally::Tally;

/// Three volunteers, of which one changes what passes.
pub(super) fn look(ground: &Ground<'_>, document: &mut Document) -> Result<Vec<Claim>> {
    let mut stage = set_up(ground)?;
    let files = large_files(&stage.repository)?;
    let tally = Tally::begin(&stage.cluster, &stage.cancel)?;
    let honest = tools(&stage, &files)?;

    let liar = Liar::make(&mut stage.cluster, LIAR, Port::Delivery, None)?;
    let name = stage.cluster.volunteers()[LIAR].name().to_owned();
    stage.until_current()?;
    until_chosen(&stage, &files, &name)?;
    let mut lied = Checked::default();
    for _ in 0..ground.rounds(3) {
        for file in &files {
            lied.add(&by_curl(&stage, file)?);
        }
    }
    let apt = if installed("apt-get") { Some(by_apt(&stage, "lied")?) } else { None };
    let begun = Instant::now();
    let evidence = verify(&stage, &name)?;
    let banned_after = begun.elapsed().as_secs_f64();
    let before = liar.spoiled();
    let mut after = Checked::default();
    for file in &files {
        after.add(&by_curl(&stage, file)?);
    }
    let spoiled_after = liar.spoiled() - before;
    let counted = tally.end(&stage.cluster, &stage.cancel)?;

    let mut table = Table::new("Files and who sent them")
        .text("tool")
        .text("volunteers")
        .number("files", "", 0)
        .number("by volunteers", "% of bytes", 1)
        .number("other bytes than the server's", "files", 0)
        .number("refused for its checksum", "times", 0);
    for (tool, checked) in &honest {
        table.row(checked.row(tool, "honest"));
    }
    table.row(lied.row("curl, sha256sum", "one lies"));
    if let Some(packages) = &apt {
        table.row(packages.row("apt", "one lies"));
    }
    table.row(after.row("curl, sha256sum", "the liar is banned"));
    let missing: Vec<&str> = ["aria2c", "apt-get"].into_iter().filter(|tool| !installed(tool)).collect();
    document
        .latest()
        .prose(
            "Customers fetch every package of a small repository through the front door, with the tools that they have, and \
             check it against what the server says: `FILE.sha256`, the metalink, or apt's own index. A relay before one \
             volunteer's port then changes a byte of everything that customers fetch there. The operator has it checked \
             (`ctl node verify`): control asks as a customer would, and bans whom it catches.",
        )
        .table(table)
        .text("The evidence, as control keeps it", &evidence)
        .counters(&counted);
    if !missing.is_empty() {
        document.latest().prose(&format!("Not installed here, and left out: {}.", missing.join(", ")));
    }
    let claim = |figure: &str, claimed: &str, measured| Claim {
        number: 3,
        figure: figure.to_owned(),
        claimed: claimed.to_owned(),
        measured,
        simulated: false,
    };
    let percent = |value: f64, holds| -> Result<Measured> {
        Ok(Measured::spread(Spread::of([value]).context("nothing was fetched")?, "%", 1, holds))
    };
    let by_volunteers =
        |checked: &Checked| checked.by_volunteers as f64 / checked.bytes.max(1) as f64 * 100.0;
    let mut claims = Vec::new();
    for (tool, checked) in &honest {
        let whole = checked.wrong == 0 && by_volunteers(checked) >= 90.0;
        claims.push(claim(
            &format!("{tool}: bytes that came from volunteers, all of them right"),
            "redirected, without custom tools (90 % taken for that)",
            percent(by_volunteers(checked), whole)?,
        ));
    }
    let all_found = lied.wrong > 0 && lied.found == lied.wrong && lied.accused_in_vain == 0;
    let found = lied.found as f64 / lied.wrong.max(1) as f64 * 100.0;
    claims.push(claim(
        &format!("wrong files ({} of {}) that the server's checksum found out", lied.wrong, lied.files),
        "all, and no right one accused",
        percent(found, all_found)?,
    ));
    if let Some(packages) = &apt {
        let right = (packages.files - packages.wrong) as f64 / packages.files.max(1) as f64 * 100.0;
        claims.push(claim(
            "apt with a liar among the volunteers: packages that came right",
            "all",
            percent(right, packages.wrong == 0)?,
        ));
    }
    let secs = Spread::of([banned_after]).context("no time passed")?;
    claims.push(claim(
        "until the liar was banned, with evidence, once asked to verify it",
        "found out by the server too",
        Measured::spread(secs, "s", 2, evidence.contains(&name)),
    ));
    let wrong = Spread::of([(after.wrong as u64 + spoiled_after) as f64]).context("a count")?;
    claims.push(claim(
        "wrong files after the ban",
        "none",
        Measured::spread(wrong, "", 0, wrong.median == 0.0),
    ));
    drop(liar);
    Ok(claims)
}

fn set_up(ground: &Ground<'_>) -> Result<Stage> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).context("expected this program in a target directory")?;
    let made = Repository::make(&target.join("freshet/repositories"), Selection::Small, &mut |step| {
        eprintln!("{step}");
    })?;
    if !made.serves_apt() {
        bail!("real packages are needed, with the indexes that apt reads: {:?}", made.kind);
    }
    let mut stage = Stage::start(ground.programs, ground.cancel, MBIT, 1, &[], |repository| {
        for file in made.files()? {
            let to = repository.join(&file.path);
            fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
            fs::copy(made.root.join(&file.path), to)?;
        }
        Ok(())
    })?;
    for number in 0..3 {
        let name = format!("v{number}");
        stage.add(&Donor { name, up: MBIT, down: MBIT, tables: String::new() })?;
    }
    stage.until_current()?;
    Ok(stage)
}

/// Files that the origin redirects, biggest first.
fn large_files(repository: &Path) -> Result<Vec<RepositoryFile>> {
    let mut files = freshet_testbed::repository::files(repository)?;
    files.retain(|file| file.size >= DIRECT_BELOW && file.path.ends_with(".deb"));
    files.sort_by_key(|file| std::cmp::Reverse(file.size));
    if files.is_empty() {
        bail!("the repository has no package of {DIRECT_BELOW} bytes");
    }
    Ok(files)
}

/// Files that were fetched and checked.
#[derive(Clone, Debug, Default)]
struct Checked {
    files: usize,
    bytes: u64,
    by_volunteers: u64,
    /// Those that differ from the repository's.
    wrong: usize,
    /// Those of them that the check refused.
    found: usize,
    /// Those that the check refused though they are right.
    accused_in_vain: usize,
}

impl Checked {
    fn add(&mut self, other: &Checked) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.by_volunteers += other.by_volunteers;
        self.wrong += other.wrong;
        self.found += other.found;
        self.accused_in_vain += other.accused_in_vain;
    }

    fn row(&self, tool: &str, volunteers: &str) -> Vec<crate::report::Cell> {
        let share = self.by_volunteers as f64 / self.bytes.max(1) as f64 * 100.0;
        cells![tool, volunteers, self.files, share, self.wrong, self.found]
    }
}

/// All files by each tool that is installed, nobody lying.
fn tools(stage: &Stage, files: &[RepositoryFile]) -> Result<Vec<(&'static str, Checked)>> {
    let mut all = Vec::new();
    let mut curl = Checked::default();
    for file in files {
        curl.add(&by_curl(stage, file)?);
    }
    all.push(("curl", curl));
    if installed("aria2c") {
        all.push(("aria2", by_aria2(stage, files)?));
    }
    if installed("apt-get") {
        all.push(("apt", by_apt(stage, "honest")?));
    }
    Ok(all)
}

/// One file, checked as the server's handbook tells a customer to.
fn by_curl(stage: &Stage, file: &RepositoryFile) -> Result<Checked> {
    let customer = customer(stage)?;
    let directory = fresh(stage, "curl")?;
    let url = stage.url(&file.path);
    let program = Program::new("curl")
        .args(["--silent", "--show-error", "--fail", "--location", "--remote-name"])
        .args(["--write-out", "%{json}", url.as_str()])
        .directory(&directory);
    let done = customer.run(&program, TOOL_MAX)?;
    if !done.status.success() {
        bail!("curl {url}: {}: {}", done.status, done.stderr.trim());
    }
    let told: Value = serde_json::from_slice(&done.stdout).context("what curl tells")?;
    let origin = stage.cluster.front_door();
    let by_origin = told["remote_ip"].as_str() == Some(&origin.ip().to_string())
        && told["remote_port"].as_u64() == Some(u64::from(origin.port()));
    let check = format!("curl --silent --show-error --fail '{url}.sha256' | sha256sum --check --status");
    let checked = customer.run(&Program::new("sh").args(["-c", &check]).directory(&directory), TOOL_MAX)?;
    let name = file.path.rsplit('/').next().context("a path has a name")?;
    let wrong = fs::read(directory.join(name))? != fs::read(stage.repository.join(&file.path))?;
    let refused = !checked.status.success();
    Ok(Checked {
        files: 1,
        bytes: file.size,
        by_volunteers: if by_origin { 0 } else { file.size },
        wrong: wrong.into(),
        found: (wrong && refused).into(),
        accused_in_vain: (!wrong && refused).into(),
    })
}

/// All files, checked by aria2 against the server's metalinks on the way.
fn by_aria2(stage: &Stage, files: &[RepositoryFile]) -> Result<Checked> {
    let directory = fresh(stage, "aria2")?;
    let before = by_origin(stage)?;
    let mut checked = Checked::default();
    for file in files {
        let program = Program::new("aria2c")
            .args([
                "--follow-metalink=mem",
                "--check-integrity=true",
                "--allow-overwrite=true",
                "--quiet=true",
            ])
            .arg(format!("{}.meta4", stage.url(&file.path)))
            .directory(&directory);
        let done = customer(stage)?.run(&program, TOOL_MAX)?;
        if !done.status.success() {
            bail!("aria2c {}: {}: {}", file.path, done.status, done.stderr.trim());
        }
        let name = file.path.rsplit('/').next().context("a path has a name")?;
        let wrong = fs::read(directory.join(name))? != fs::read(stage.repository.join(&file.path))?;
        checked.add(&Checked { files: 1, bytes: file.size, wrong: wrong.into(), ..Checked::default() });
    }
    // Metalinks are the origin's, and count as such.
    checked.by_volunteers = checked.bytes.saturating_sub(by_origin(stage)? - before);
    Ok(checked)
}

/// Packages by apt in a root of its own: it reads nothing of this system's and changes nothing there.
fn by_apt(stage: &Stage, run: &str) -> Result<Checked> {
    let root = stage.directory.join(format!("apt-{run}"));
    freshet_testbed::make_apt_root(&root, &stage.url(""), &[])?;
    let downloads = root.join("downloads");
    let apt = |program: &str, arguments: &[&str]| -> Result<(bool, String)> {
        let program = Program::new(program)
            .args(arguments.iter().copied())
            .env("APT_CONFIG", root.join("apt.conf"))
            .env("LC_ALL", "C")
            .directory(&downloads);
        let done = customer(stage)?.run(&program, TOOL_MAX)?;
        Ok((done.status.success(), format!("{}{}", done.text(), done.stderr)))
    };
    let (updated, words) = apt("apt-get", &["-q", "update"])?;
    if !updated {
        bail!("apt-get update: {words}");
    }
    let (_, listed) = apt("apt-cache", &["pkgnames"])?;
    let names: Vec<&str> = listed.lines().collect();
    let files = freshet_testbed::repository::files(&stage.repository)?;
    let right: BTreeSet<Vec<u8>> = files
        .iter()
        .filter(|file| file.path.ends_with(".deb"))
        .map(|file| Ok(fs::read(stage.repository.join(&file.path))?))
        .collect::<Result<_>>()?;
    let before = by_origin(stage)?;
    let mut checked = Checked::default();
    for name in names {
        // apt refuses what its index does not name, and leaves it lying. As its user would, one asks again then.
        let mut came = None;
        for _ in 0..APT_TRIES {
            let (accepted, words) = apt("apt-get", &["-q", "download", name])?;
            let contents = taken(&downloads)?;
            taken(&root.join("var/cache/apt/archives/partial"))?;
            if accepted {
                came = Some(contents);
                break;
            }
            if !words.contains("Hash Sum mismatch") {
                bail!("apt-get download {name}: {words}");
            }
            checked.found += 1;
        }
        let contents = came.unwrap_or_default();
        let whole = contents.len() == 1 && contents.iter().all(|content| right.contains(content));
        let bytes = contents.iter().map(|content| content.len() as u64).sum();
        checked.add(&Checked { files: 1, bytes, wrong: (!whole).into(), ..Checked::default() });
    }
    checked.by_volunteers = checked.bytes.saturating_sub(by_origin(stage)? - before);
    Ok(checked)
}

/// Bytes of files that the front door has sent itself.
fn by_origin(stage: &Stage) -> Result<u64> {
    let status = stage.cluster.ctl(&["status"])?;
    status["front_door"]["body_bytes"].as_u64().context("expected what the front door sent")
}

/// The contents of the files in a directory, which are removed.
fn taken(directory: &Path) -> Result<Vec<Vec<u8>>> {
    let mut contents = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            contents.push(fs::read(entry.path())?);
            fs::remove_file(entry.path())?;
        }
    }
    Ok(contents)
}

/// Waits until customers are sent to a volunteer for one of the files.
fn until_chosen(stage: &Stage, files: &[RepositoryFile], name: &str) -> Result<()> {
    let file = files.first().context("there is a file")?;
    Ok(freshet_testbed::wait_until("customers to be sent to everybody", TOOL_MAX, &stage.cancel, || {
        let explained = stage.cluster.ctl(&["explain", &file.path])?;
        let considered = explained["considered"].as_array().map(Vec::as_slice).unwrap_or_default();
        let chosen = considered.iter().any(|one| one["name"] == name && one["excluded"].is_null());
        Ok(chosen.then_some(()))
    })?)
}

/// Has control check a volunteer, and gives the evidence of its ban.
fn verify(stage: &Stage, name: &str) -> Result<String> {
    let program = Program::new(stage.cluster.program("ctl"))
        .arg("--credentials")
        .arg(stage.cluster.credentials())
        .args(["--json", "node", "verify", name]);
    let done = stage.cluster.origin().run(&program, TOOL_MAX)?;
    let told: Value = serde_json::from_slice(&done.stdout)
        .with_context(|| format!("ctl node verify: {}: {}", done.status, done.stderr.trim()))?;
    if told["banned"] != Value::Bool(true) {
        bail!("a volunteer that changes what it sends was not banned: {told}");
    }
    let swarm = stage.cluster.ctl(&["swarm"])?;
    Ok(serde_json::to_string_pretty(&swarm["banned"])?)
}

fn customer(stage: &Stage) -> Result<&Host> {
    stage.customers.first().context("there is a customer")
}

/// An empty directory of this name.
fn fresh(stage: &Stage, name: &str) -> Result<std::path::PathBuf> {
    let directory = stage.directory.join(name);
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir(&directory)?;
    Ok(directory)
}

const MBIT: u64 = 100;
/// Which of the volunteers lies.
const LIAR: usize = 2;
/// What is smaller the origin sends itself (control's default).
const DIRECT_BELOW: u64 = 64 << 10;
/// Two of three times a liar is not asked.
const APT_TRIES: usize = 12;
const TOOL_MAX: Duration = Duration::from_secs(120);
