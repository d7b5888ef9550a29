//! `cargo xtask ebpf`: builds the classifiers' object that is committed, or with `--check` proves that it is the one
//! which the sources give. No other verb needs a BPF toolchain, and this one never installs one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Builds the object from `ebpf/programs` below `root`. With `check` nothing is written, and a difference to what is
/// committed is an error.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let toolchain = Toolchain::find()?;
    let built = build(root, &toolchain)?;
    let committed = root.join(OBJECT);
    if check {
        let old = fs::read(&committed).with_context(|| format!("read {}", committed.display()))?;
        let new = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
        ensure!(
            old == new,
            "{OBJECT} ({} bytes) is not what the sources give ({} bytes, kept as {}): run `cargo xtask ebpf` and \
             commit the result",
            old.len(),
            new.len(),
            built.display()
        );
        let expected = checksums(root)?;
        let recorded =
            fs::read_to_string(root.join(CHECKSUMS)).with_context(|| format!("read {CHECKSUMS}"))?;
        ensure!(recorded == expected, "{CHECKSUMS} is stale: run `cargo xtask ebpf` and commit the result");
        println!("{OBJECT} is what the sources give, by {}", toolchain.version);
        return Ok(());
    }
    fs::copy(&built, &committed).with_context(|| format!("write {}", committed.display()))?;
    fs::write(root.join(CHECKSUMS), checksums(root)?).with_context(|| format!("write {CHECKSUMS}"))?;
    println!("{OBJECT}: {} bytes, by {}", fs::metadata(&committed)?.len(), toolchain.version);
    Ok(())
}

/// Compiles, links and strips; the result is the same bytes wherever the tree and the compiler lie.
fn build(root: &Path, toolchain: &Toolchain) -> Result<PathBuf> {
    let programs = root.join("ebpf/programs");
    let target = root.join("target/ebpf");
    let cargo_home = home("CARGO_HOME", ".cargo")?;
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        "-Cdebuginfo=0".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
        remap(&cargo_home, "/cargo"),
        remap(&toolchain.sysroot, "/rust"),
        remap(root, "/freshet"),
    ];
    let status = Command::new(&toolchain.cargo)
        .args(["build", "--release", "--locked", "--target", TARGET, "-Z", "build-std=core"])
        .current_dir(&programs)
        .env("RUSTC", &toolchain.rustc)
        // Nothing unstable but the target itself and the building of `core` for it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTUP_TOOLCHAIN")
        .status()
        .with_context(|| format!("start {}", toolchain.cargo.display()))?;
    ensure!(status.success(), "the classifiers did not compile: {status}");
    let linked = target.join(TARGET).join("release/freshet");
    let stripped = target.join("freshet.o");
    let strip = Command::new(&toolchain.strip).arg("-g").arg("-o").arg(&stripped).arg(&linked).status();
    let status = strip.with_context(|| format!("start {}", toolchain.strip.display()))?;
    ensure!(status.success(), "{} failed on {}: {status}", toolchain.strip.display(), linked.display());
    Ok(stripped)
}

/// What `sha256sum` says of everything that decides the object, and of the object; `sha256sum -c` reads it again.
fn checksums(root: &Path) -> Result<String> {
    let output = Command::new("sha256sum")
        .args(SOURCES)
        .arg("object/freshet.o")
        .current_dir(root.join("ebpf"))
        .output()
        .context("start sha256sum (coreutils)")?;
    ensure!(output.status.success(), "sha256sum: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// A compiler and a linker of the same LLVM.
struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    linker: PathBuf,
    strip: PathBuf,
    sysroot: PathBuf,
    version: String,
}

impl Toolchain {
    fn find() -> Result<Self> {
        let mut seen = Vec::new();
        for rustc in compilers() {
            match Self::of(&rustc) {
                Ok(found) => return Ok(found),
                Err(error) => seen.push(format!("  {}: {error:#}", rustc.display())),
            }
        }
        bail!(
            "expected a Rust compiler with LLVM {LLVM}, its library sources, and bpf-linker\n{}\n{HELP}",
            seen.join("\n")
        )
    }

    fn of(rustc: &Path) -> Result<Self> {
        let verbose = stdout(Command::new(rustc).arg("-vV"))?;
        let line = |key: &str| verbose.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default().trim();
        let llvm = line("LLVM version:");
        ensure!(llvm.split('.').next() == Some(LLVM), "its LLVM is {llvm:?}");
        let sysroot = PathBuf::from(stdout(Command::new(rustc).args(["--print", "sysroot"]))?.trim());
        let library = sysroot.join("lib/rustlib/src/rust/library/core");
        ensure!(library.is_dir(), "no library sources at {}", library.display());
        let cargo = rustc.with_file_name("cargo");
        ensure!(cargo.is_file(), "no cargo beside it");
        Ok(Self {
            rustc: rustc.to_owned(),
            cargo,
            linker: linker()?,
            strip: strip()?,
            sysroot,
            version: verbose.lines().next().unwrap_or_default().to_owned(),
        })
    }
}

/// Where a fitting compiler may be: named in `FRESHET_BPF_RUSTC`, of rustup, of the distribution.
fn compilers() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::env::var_os("FRESHET_BPF_RUSTC").map(PathBuf::from).into_iter().collect();
    if let Ok(path) = stdout(Command::new("rustup").args(["which", "rustc", "--toolchain", RUSTUP_TOOLCHAIN]))
    {
        found.push(PathBuf::from(path.trim()));
    }
    found.push(PathBuf::from("/usr/bin/rustc"));
    found
}

fn linker() -> Result<PathBuf> {
    let named = std::env::var_os("FRESHET_BPF_LINKER").map(PathBuf::from);
    let linker = named.or_else(|| in_path("bpf-linker")).context("no bpf-linker in PATH")?;
    let version = stdout(Command::new(&linker).arg("--version"))?;
    ensure!(
        version.split_whitespace().any(|word| word == LINKER_VERSION),
        "{} is {:?}, expected {LINKER_VERSION}",
        linker.display(),
        version.trim()
    );
    Ok(linker)
}

fn strip() -> Result<PathBuf> {
    let beside = PathBuf::from(format!("/usr/lib/llvm-{LLVM}/bin/llvm-strip"));
    if beside.is_file() {
        return Ok(beside);
    }
    in_path(&format!("llvm-strip-{LLVM}")).with_context(|| format!("no llvm-strip of LLVM {LLVM}"))
}

fn in_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn home(variable: &str, below: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    Ok(PathBuf::from(
        std::env::var_os("HOME").with_context(|| format!("neither {variable} nor HOME is set"))?,
    )
    .join(below))
}

fn stdout(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// The object that the loader embeds, below the root.
const OBJECT: &str = "ebpf/object/freshet.o";

/// Checksums of the sources and of the object, below the root.
const CHECKSUMS: &str = "ebpf/object/SHA256SUMS";

/// All that decides the object, below `ebpf`; a test without toolchain compares them with the recorded checksums.
const SOURCES: [&str; 6] = [
    "abi/Cargo.toml",
    "abi/src/lib.rs",
    "programs/Cargo.lock",
    "programs/Cargo.toml",
    "programs/src/main.rs",
    "programs/src/packet.rs",
];

const TARGET: &str = "bpfel-unknown-none";

/// The object is the same bytes for every compiler of one LLVM, so the LLVM is what is pinned.
const LLVM: &str = "22";

const LINKER_VERSION: &str = "0.13.0";

/// The release of rustup that has this LLVM.
const RUSTUP_TOOLCHAIN: &str = "1.96";

const HELP: &str = "\
on Debian 12:    apt-get install rustc-web cargo-web rust-web-src llvm-22-dev
with rustup:     rustup toolchain install 1.96 --component rust-src
then the linker: LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked \
--no-default-features --features llvm-22";
