//! Paths as distribution mirrors have them: pools of source packages with their binaries, versions and architectures,
//! trees of RPMs by first letter, indexes, images. Made from a seed; no name is a real one.

use freshet_policy::draw::Draw;

/// What a file of the catalogue is called, and when it was made.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// Its path.
    pub(super) path: String,
    /// Seconds since the epoch.
    pub(super) mtime: i64,
    /// Whether it is an index that names others.
    pub(super) last: bool,
}

/// The packages of one distribution, one after the other.
#[derive(Debug)]
pub(super) struct Distribution {
    number: u8,
    draw: Draw,
    source: Source,
    /// Files of the source that are still to come.
    waiting: Vec<Named>,
    indexes: u32,
    images: u32,
    sources: u32,
}

/// A source package: what its binaries share.
#[derive(Debug, Default)]
struct Source {
    name: String,
    versions: Vec<String>,
    binaries: Vec<String>,
    made: i64,
}

impl Distribution {
    /// Number 0 to 9: even ones have `.deb` packages, odd ones `.rpm`.
    pub(super) fn new(number: u8, seed: u64) -> Self {
        Self {
            number,
            draw: Draw::new(seed ^ (u64::from(number) << 32)),
            source: Source::default(),
            waiting: Vec::new(),
            indexes: 0,
            images: 0,
            sources: 0,
        }
    }

    /// The next package, or, once in a while, an index.
    pub(super) fn package(&mut self) -> Named {
        if self.draw.below(INDEX_EVERY) == 0 {
            return self.index();
        }
        loop {
            if let Some(named) = self.waiting.pop() {
                return named;
            }
            self.new_source();
        }
    }

    /// The next installation image.
    pub(super) fn image(&mut self) -> Named {
        self.images += 1;
        let arch = ARCHITECTURES[self.draw.below(ARCHITECTURES.len())];
        let (name, disc) = (self.name(), self.images);
        let release = disc / 20 + 1;
        let path = format!("{name}/releases/{release}.0/{arch}/iso/{name}-{release}.0-{arch}-disc{disc}.iso");
        Named { path, mtime: EPOCH + i64::from(release) * 15_000_000, last: false }
    }

    fn name(&self) -> String {
        format!("{}{}", DISTRIBUTIONS[usize::from(self.number) % DISTRIBUTIONS.len()], self.number)
    }

    fn index(&mut self) -> Named {
        self.indexes += 1;
        let (name, at) = (self.name(), self.indexes);
        let arch = ARCHITECTURES[at as usize % ARCHITECTURES.len()];
        let mtime = EPOCH + 100_000_000 + i64::from(at % 50);
        if self.number % 2 == 1 {
            let path = format!("{name}/{}/os/{arch}/repodata/{}-primary.xml.zst", at / 40, self.hex());
            return Named { path, mtime, last: at % 40 == 0 };
        }
        let suite = SUITES[at as usize / 500 % SUITES.len()];
        let component = COMPONENTS[at as usize % COMPONENTS.len()];
        let path = if at % 500 == 0 {
            format!("{name}/dists/{suite}{}/Release", at / 500)
        } else {
            let place = format!("{name}/dists/{suite}{}/{component}/binary-{arch}", at / 500);
            format!("{place}/by-hash/SHA256/{}{}", self.hex(), self.hex())
        };
        Named { path, mtime, last: at % 500 == 0 }
    }

    /// 32 hexadecimal digits.
    fn hex(&mut self) -> String {
        let mut draw = || self.draw.below(usize::MAX) as u64;
        format!("{:016x}{:016x}", draw(), draw())
    }

    fn new_source(&mut self) {
        self.sources += 1;
        let draw = &mut self.draw;
        let stem = stem(self.sources, draw);
        let library = draw.below(3) == 0;
        let name = if library { format!("lib{stem}") } else { stem };
        let versions = (0..1 + draw.below(3))
            .map(|_| {
                let (major, minor, patch) = (draw.below(9), draw.below(30), draw.below(12));
                let (build, update) = (1 + draw.below(6), draw.below(5));
                match draw.below(4) {
                    0 => format!("{major}.{minor}-{build}"),
                    1 => format!("{major}.{minor}.{patch}+dfsg-{build}"),
                    2 => format!("{major}.{minor}.{patch}-{build}+u{update}"),
                    _ => format!("{major}.{minor}.{patch}-{build}"),
                }
            })
            .collect();
        let mut binaries = vec![name.clone()];
        for suffix in SUFFIXES.iter().take(draw.below(SUFFIXES.len() + 1)) {
            binaries.push(format!("{name}{suffix}"));
        }
        // Uploads come at any time; the files of one were built within some hours.
        let made = EPOCH + draw.below(UPLOADS_SECS) as i64;
        self.source = Source { name, versions, binaries, made };
        self.waiting = if self.number.is_multiple_of(2) { self.debs() } else { self.rpms() };
    }

    fn debs(&mut self) -> Vec<Named> {
        let Source { name, versions, binaries, made } = &self.source;
        let letter = if name.starts_with("lib") { &name[..4] } else { &name[..1] };
        let component = COMPONENTS[self.draw.below(20).saturating_sub(17)];
        let place = format!("{}/pool/{component}/{letter}/{name}", self.name());
        let mut files = Vec::new();
        for (number, version) in (0i64..).zip(versions) {
            let made = made + number * 7_000_000;
            for file in [format!("{name}_{version}.dsc"), format!("{name}_{version}.debian.tar.xz")] {
                files.push(Named { path: format!("{place}/{file}"), mtime: made, last: false });
            }
            for binary in binaries {
                if binary.ends_with("-doc") || binary.ends_with("-common") {
                    let path = format!("{place}/{binary}_{version}_all.deb");
                    files.push(Named { path, mtime: made + 600, last: false });
                    continue;
                }
                for arch in DEB_ARCHITECTURES {
                    let mtime = made + self.draw.below(14_400) as i64;
                    files.push(Named {
                        path: format!("{place}/{binary}_{version}_{arch}.deb"),
                        mtime,
                        last: false,
                    });
                }
            }
        }
        files
    }

    fn rpms(&mut self) -> Vec<Named> {
        let Source { versions, binaries, made, .. } = &self.source;
        let (name, release) = (self.name(), 1 + self.sources % 3);
        let mut files = Vec::new();
        for (number, version) in (0i64..).zip(versions) {
            let made = made + number * 7_000_000;
            for binary in binaries {
                for arch in ARCHITECTURES {
                    let place = format!("{name}/{release}/os/{arch}/Packages/{}", &binary[..1]);
                    let mtime = made + self.draw.below(14_400) as i64;
                    let path = format!("{place}/{binary}-{version}.el{release}.{arch}.rpm");
                    files.push(Named { path, mtime, last: false });
                }
            }
        }
        files
    }
}

/// A pronounceable name, no two sources of a distribution having the same.
fn stem(number: u32, draw: &mut Draw) -> String {
    let mut name = String::new();
    for _ in 0..1 + draw.below(3) {
        name.push_str(SYLLABLES[draw.below(SYLLABLES.len())]);
    }
    if draw.below(3) == 0 {
        name.push('-');
        name.push_str(SYLLABLES[draw.below(SYLLABLES.len())]);
    }
    // No syllable has a digit, so no number is taken for another's.
    name + &number.to_string()
}

const DISTRIBUTIONS: [&str; 5] = ["debian", "fedora", "ubuntu", "rocky", "raspbian"];
const SUITES: [&str; 4] = ["stable", "testing", "updates", "security"];
const COMPONENTS: [&str; 4] = ["main", "contrib", "non-free", "non-free-firmware"];
const ARCHITECTURES: [&str; 3] = ["x86_64", "aarch64", "ppc64le"];
const DEB_ARCHITECTURES: [&str; 5] = ["amd64", "arm64", "armhf", "i386", "riscv64"];
const SUFFIXES: [&str; 6] = ["-dev", "-doc", "-common", "-utils", "-bin", "-dbgsym"];
const SYLLABLES: [&str; 24] = [
    "ge", "tex", "py", "kde", "gnome", "net", "core", "ser", "vim", "qt", "rust", "go", "ruby", "perl",
    "xml", "font", "mail", "img", "data", "sys", "term", "audio", "crypt", "math",
];
/// One file in a hundred is an index.
const INDEX_EVERY: usize = 100;
/// 2018 or so.
const EPOCH: i64 = 1_530_000_000;
const UPLOADS_SECS: usize = 200_000_000;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn paths_are_distinct_and_valid() {
        let mut seen = HashSet::new();
        for number in 0..10 {
            let mut distribution = Distribution::new(number, 1);
            for at in 0..20_000 {
                let named = if at % 4_000 == 0 { distribution.image() } else { distribution.package() };
                assert!(named.path.parse::<freshet_api::manifest::RepoPath>().is_ok(), "{}", named.path);
                assert!(seen.insert(named.path.clone()), "{} twice", named.path);
            }
        }
        let bytes: usize = seen.iter().map(String::len).sum();
        let mean = bytes / seen.len();
        assert!((50..110).contains(&mean), "paths have {mean} bytes on average");
    }
}
