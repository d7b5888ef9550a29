//! The volunteer's configuration: `dataplane.toml`, read once into checked values.
//!
//! Everything that an owner decides stands here; what control decided (credential, node number) does not.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use freshet_api::BytesPerSec;
use freshet_api::config::ConfigError;
use freshet_ebpf::InterfaceChoice;
use serde::{Deserialize, Serialize};

use crate::access_log::{AccessLogFormat, AccessLogTarget};
use crate::limits::{LimitError, LimitOptions};
use crate::logging::LogFormat;
use crate::network::Network;

pub mod budget;
pub mod mirror;
mod public_url;

use budget::BudgetConfig;
use mirror::MirrorConfig;
pub use public_url::{PublicUrl, PublicUrlError};

/// `dataplane.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where customers are served; port 0 picks one. Empty means [`DEFAULT_LISTEN`].
    pub listen: Vec<SocketAddr>,
    /// What customers are sent to; without it `http://` and the first address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<PublicUrl>,
    /// Where other mirrors fetch pieces; port 0 picks one. Without it the port after the first of `listen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_listen: Option<SocketAddr>,
    /// What other mirrors are sent to; without it `http://` and that address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_public_url: Option<PublicUrl>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served, without a key; without it nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Where the mirror's tree is shown; without it `tree` beside the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tree: Option<PathBuf>,
    /// Where credential and blobs are; without it the configuration's own directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,
    /// Interfaces that are counted.
    pub interfaces: Interfaces,
    /// Whether classifiers in the kernel (eBPF) count, where they may; else our own sockets' figures do.
    pub classifiers: bool,
    /// Where the kernel keeps the classifiers and their counts when this process dies.
    pub pins: Pins,
    /// Most that is sent, to customers and mirrors together, counted as bits on the wire; without it all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub donated_rate: Option<BytesPerSec>,
    /// Most that is received to keep the mirror current; without it as much as is donated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_rate: Option<BytesPerSec>,
    /// Networks whose clients need no ticket.
    pub local_networks: Vec<Network>,
    /// Threads that serve, each with a ring; 0 means one per core.
    pub rings: usize,
    /// How long a stop waits for transfers to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_secs: Option<u64>,
    /// What the owner gives beyond a rate.
    pub budget: BudgetConfig,
    /// Which part of the repository is kept.
    #[serde(skip_serializing_if = "MirrorConfig::is_whole")]
    pub mirror: MirrorConfig,
    /// The engine's bounds.
    pub limits: LimitOptions,
    /// Logs.
    pub log: LogConfig,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// How the daemon's own lines look.
    pub format: LogFormat,
    /// Which of them are written, as `RUST_LOG` would say it; without it `info`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Where requests are recorded.
    pub access: AccessLogTarget,
    /// How such a line looks.
    pub access_format: AccessLogFormat,
    /// One response in so many is recorded.
    pub access_sample: u32,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            filter: None,
            access: AccessLogTarget::Off,
            access_format: AccessLogFormat::Combined,
            access_sample: 1,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            public_url: None,
            sync_listen: None,
            sync_public_url: None,
            metrics_listen: None,
            tree: None,
            state: None,
            interfaces: Interfaces::default(),
            classifiers: true,
            pins: Pins::default(),
            donated_rate: None,
            sync_rate: None,
            local_networks: Vec::new(),
            rings: 0,
            grace_secs: None,
            budget: BudgetConfig::default(),
            mirror: MirrorConfig::default(),
            limits: LimitOptions::default(),
            log: LogConfig::default(),
        }
    }
}

impl Config {
    /// Reads a file and checks what can be checked without the network; relative paths start at its directory.
    ///
    /// `state` is in place of the state directory that the file names.
    ///
    /// # Errors
    /// [`LoadError`], with the place.
    pub fn load(path: &Path, state: Option<&Path>) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        let mut config: Self = freshet_api::config::parse(&text)
            .map_err(|source| LoadError::Parse { path: path.to_owned(), source })?;
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let state = match (state, config.state.take()) {
            (Some(state), _) => state.to_owned(),
            (None, Some(state)) => directory.join(state),
            (None, None) => directory.to_owned(),
        };
        config.tree = Some(config.tree.take().map_or_else(|| state.join(TREE), |tree| directory.join(tree)));
        if let AccessLogTarget::File(file) = &mut config.log.access {
            *file = directory.join(&*file);
        }
        config.state = Some(state);
        config.check().map_err(|source| LoadError::Value { path: path.to_owned(), source })?;
        Ok(config)
    }

    /// Checks what no type says.
    ///
    /// # Errors
    /// [`ValueError`] names the key.
    pub fn check(&self) -> Result<(), ValueError> {
        self.limits.to_limits()?;
        if self.listen.len() > LISTEN_MAX {
            return Err(ValueError::TooMany { key: "listen", most: LISTEN_MAX, found: self.listen.len() });
        }
        if self.local_networks.len() > NETWORKS_MAX {
            let found = self.local_networks.len();
            return Err(ValueError::TooMany { key: "local_networks", most: NETWORKS_MAX, found });
        }
        for (key, rate) in [("donated_rate", self.donated_rate), ("sync_rate", self.sync_rate)] {
            if let Some(rate) = rate
                && rate.0 < RATE_MIN.0
            {
                return Err(ValueError::TooSlow { key, found: rate });
            }
        }
        self.budget.check(self.donated_rate)?;
        self.mirror.selection()?;
        if self.mirror.ordered && self.mirror.quota.is_none() {
            return Err(ValueError::Ordered);
        }
        if self.rings > RINGS_MAX {
            return Err(ValueError::TooMany { key: "rings", most: RINGS_MAX, found: self.rings });
        }
        if let Some(found) = self.grace_secs.filter(|&grace| grace > GRACE_SECS_MAX) {
            return Err(ValueError::Limit(LimitError {
                name: "grace_secs",
                least: 0,
                most: GRACE_SECS_MAX,
                found,
            }));
        }
        if self.log.access_sample == 0 {
            let most = u64::from(u32::MAX);
            return Err(LimitError { name: "log.access_sample", least: 1, most, found: 0 }.into());
        }
        if let Some(filter) = &self.log.filter {
            crate::logging::check_filter(filter).map_err(|message| ValueError::Filter { message })?;
        }
        Ok(())
    }

    /// Where to listen.
    pub fn listen_addresses(&self) -> Vec<SocketAddr> {
        if self.listen.is_empty() { vec![DEFAULT_LISTEN] } else { self.listen.clone() }
    }

    /// Where credential and store are.
    pub fn state_directory(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| PathBuf::from("."))
    }

    /// Where the mirror's tree is shown.
    pub fn tree_directory(&self) -> PathBuf {
        self.tree.clone().unwrap_or_else(|| self.state_directory().join(TREE))
    }

    /// Most that sync receives.
    pub fn effective_sync_rate(&self) -> Option<BytesPerSec> {
        self.sync_rate.or(self.donated_rate)
    }

    /// How long a stop waits for transfers to end.
    pub fn grace(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.grace_secs.unwrap_or(GRACE_SECS_DEFAULT))
    }

    /// As TOML, with every value that is in force.
    ///
    /// # Errors
    /// None is expected: every value has a TOML form.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Keys in which `new` differs that only a restart changes.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        [
            ("listen", self.listen != new.listen),
            ("sync_listen", self.sync_listen != new.sync_listen),
            ("sync_public_url", self.sync_public_url != new.sync_public_url),
            ("metrics_listen", self.metrics_listen != new.metrics_listen),
            ("tree", self.tree != new.tree),
            ("state", self.state != new.state),
            ("interfaces", self.interfaces != new.interfaces),
            ("classifiers", self.classifiers != new.classifiers),
            ("pins", self.pins != new.pins),
            ("mirror", self.mirror != new.mirror),
            ("budget.hard_limit", self.budget.hard_limit != new.budget.hard_limit),
            ("rings", self.rings != new.rings),
            ("limits", self.limits != new.limits),
            ("log.format", self.log.format != new.log.format),
            ("log.filter", self.log.filter != new.log.filter),
            ("log.access", self.log.access != new.log.access),
            ("log.access_format", self.log.access_format != new.log.access_format),
            ("log.access_sample", self.log.access_sample != new.log.access_sample),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

/// Which interfaces are counted: `"auto"`, or names and patterns with commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    text: String,
    choice: InterfaceChoice,
}

impl Interfaces {
    /// As the counters want it.
    pub fn choice(&self) -> &InterfaceChoice {
        &self.choice
    }
}

impl Default for Interfaces {
    fn default() -> Self {
        Self { text: "auto".to_owned(), choice: InterfaceChoice::Automatic }
    }
}

impl FromStr for Interfaces {
    type Err = freshet_ebpf::InterfaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self { choice: text.parse()?, text: text.to_owned() })
    }
}

impl<'de> Deserialize<'de> for Interfaces {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Interfaces {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Where the classifiers outlive this process: `"auto"`, `"off"`, or a directory of a bpffs for this daemon alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pins {
    /// A directory in [`BPFFS`] that is named after the state directory; without a bpffs there, none.
    #[default]
    Auto,
    /// Nowhere: what is counted after the ledger's last line is lost with the process.
    Off,
    /// There.
    Directory(PathBuf),
}

impl Pins {
    /// The directory for a daemon whose state is in `state`.
    pub fn directory(&self, state: &Path) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::Directory(path) => Some(path.clone()),
            Self::Auto => {
                let state = std::fs::canonicalize(state).unwrap_or_else(|_| state.to_owned());
                let name = blake3::hash(state.as_os_str().as_encoded_bytes());
                let mounted = rustix::fs::statfs(BPFFS).is_ok_and(|fs| fs.f_type as u64 == BPF_FS_MAGIC);
                mounted.then(|| Path::new(BPFFS).join(format!("{PINS_PREFIX}{}", &name.to_hex()[..16])))
            }
        }
    }
}

impl FromStr for Pins {
    type Err = PinsError;

    fn from_str(text: &str) -> Result<Self, PinsError> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') && !path.contains('.') => Ok(Self::Directory(path.into())),
            _ => Err(PinsError { found: text.chars().take(120).collect() }),
        }
    }
}

impl std::fmt::Display for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Directory(path) => path.display().fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Pins {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Pins {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Text that says nothing about pins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected `auto`, `off` or a path below a bpffs without dots such as `/sys/fs/bpf/mine`, found {found:?}"
)]
pub struct PinsError {
    /// The first 120 characters of what was found.
    pub found: String,
}

/// Why a configuration is not in force.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It can't be read.
    #[error("cannot read {}: {source}; `dataplane join` writes one, and --state DIR names its directory", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no configuration.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: ConfigError,
    },
    /// A value makes no sense.
    #[error("{}: {source}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Which and why.
        source: ValueError,
    },
}

/// A value that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A bound.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A list or number that is too large.
    #[error("expected at most {most} in `{key}`, found {found}")]
    TooMany {
        /// The key.
        key: &'static str,
        /// The bound.
        most: usize,
        /// What came.
        found: usize,
    },
    /// A rate at which nothing would ever end.
    #[error("expected `{key}` to be at least {RATE_MIN}, found {found}; leave the key out for no limit")]
    TooSlow {
        /// The key.
        key: &'static str,
        /// What came.
        found: BytesPerSec,
    },
    /// A part of the budget.
    #[error("expected `budget.{key}` to be {expected}, found {found}")]
    Budget {
        /// The key below `budget`.
        key: &'static str,
        /// What would have been right.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// A part of the repository that can't be selected so.
    #[error(transparent)]
    Selection(#[from] crate::mirror::SelectionError),
    /// Left to control without room for it.
    #[error("expected `mirror.quota` where `mirror.ordered` is true: the room that control may use")]
    Ordered,
    /// A log filter that can't be read.
    #[error("expected `log.filter` to be like `info` or `warn,freshet_dataplane=debug`: {message}")]
    Filter {
        /// Why.
        message: String,
    },
}

/// What `dataplane join` writes into a new configuration.
#[derive(Clone, Debug, Default)]
pub struct Template {
    /// `listen`.
    pub listen: Vec<SocketAddr>,
    /// `public_url`.
    pub public_url: Option<PublicUrl>,
    /// `tree`.
    pub tree: Option<PathBuf>,
    /// `donated_rate`, as it was typed.
    pub donated_rate: Option<String>,
}

impl Template {
    /// A commented configuration; what was not given stands in it as a comment.
    pub fn render(&self) -> String {
        let mut text = String::from(TEMPLATE_HEAD);
        let mut key = |comment: &str, key: &str, value: Option<String>, example: &str| {
            // Writing to a String can't fail.
            let _ = match value {
                Some(value) => writeln!(text, "{comment}\n{key} = {value}\n"),
                None => writeln!(text, "{comment}\n#{key} = {example}\n"),
            };
        };
        let quoted = |value: &dyn std::fmt::Display| toml::Value::String(value.to_string()).to_string();
        let listen = (!self.listen.is_empty())
            .then(|| format!("[{}]", self.listen.iter().map(|a| quoted(a)).collect::<Vec<_>>().join(", ")));
        key("# Where customers are served.", "listen", listen, &format!("[\"{DEFAULT_LISTEN}\"]"));
        key(
            "# What customers are sent to, when it is not simply the first address above (a name, a port that is\n\
             # forwarded). Must be reachable by them.",
            "public_url",
            self.public_url.as_ref().map(|url| quoted(url)),
            "\"http://mirror.example.org:8081\"",
        );
        key(
            "# Where the mirror's tree is shown. Must be on the same file system as this directory: the files in it\n\
             # are hard links to the store.",
            "tree",
            self.tree.as_ref().map(|tree| quoted(&tree.display())),
            "\"tree\"",
        );
        key(
            "# Most that is sent to customers and mirrors together, counted on the wire. Without it: all.",
            "donated_rate",
            self.donated_rate.as_ref().map(|rate| quoted(rate)),
            "\"200 Mbit/s\"",
        );
        text.push_str(TEMPLATE_TAIL);
        text
    }
}

/// Where customers are served unless the configuration says otherwise: port 8081 of every address.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 8081);
/// The configuration's name within a state directory.
pub const FILE_NAME: &str = "dataplane.toml";
/// The tree's name within a state directory, unless the configuration names another.
pub const TREE: &str = "tree";
/// Where a bpffs is usually mounted.
pub const BPFFS: &str = "/sys/fs/bpf";
/// From `linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Where the package's unit has the daemon pin, which is not root there and may not enter [`BPFFS`].
pub const PACKAGED_PINS: &str = "/run/freshet-bpf/pins";
/// How the directories of [`Pins::Auto`] begin.
pub const PINS_PREFIX: &str = "freshet-";
/// The least rate that can be donated.
pub const RATE_MIN: BytesPerSec = BytesPerSec(12_500);

const LISTEN_MAX: usize = 16;
const NETWORKS_MAX: usize = 256;
const RINGS_MAX: usize = 1_024;
const GRACE_SECS_DEFAULT: u64 = 30;
const GRACE_SECS_MAX: u64 = 24 * 3600;

const TEMPLATE_HEAD: &str = "\
# What this volunteer gives, and where. `dataplane run --state DIR --check-config` tells what is in force;
# SIGHUP reads it again. Unknown keys are refused. Relative paths start at this file's directory.

";

const TEMPLATE_TAIL: &str = "\
# Most that is received to keep the mirror current. Without it: as much as is donated.
#sync_rate = \"400 Mbit/s\"

# Clients of these networks are served without a ticket, as from an ordinary mirror.
#local_networks = [\"192.0.2.0/24\", \"2001:db8:1::/48\"]

# Interfaces that are counted: \"auto\" for those with a default route, or names, also with * and ?.
#interfaces = \"eth0,eth1\"

# Whether classifiers in the kernel (eBPF) count, where they may; else the kernel's figures of our own sockets do.
#classifiers = true

# Where the kernel keeps the classifiers and their counts while this daemon is dead, so that a crash loses no byte of
# the month: \"auto\" (in /sys/fs/bpf, if that is mounted), \"off\", or a path below a bpffs. A stop takes them away.
#pins = \"auto\"

# Threads that serve, each with a ring; 0 means one per core.
#rings = 0

# How long a stop waits for transfers to end.
#grace_secs = 30

# Where other mirrors fetch pieces of what is new, and what they are sent to. Without them the port after the first of
# `listen`. Must be reachable by them, or this mirror only takes.
#sync_listen = \"[::]:8082\"
#sync_public_url = \"http://mirror.example.org:8082\"

# Where /metrics, /healthz and /readyz are served for monitoring, in plain HTTP and without a key. Without it nowhere.
#metrics_listen = \"127.0.0.1:8381\"

# Which part of the repository is kept, when not all of it: patterns of *, ? and ** (across directories), and a volume.
# Indexes are kept whatever the volume; of the rest the newest files.
#[mirror]
#include = [\"dists/**\", \"pool/main/**\"]
#exclude = [\"*-dbg_*\"]
#quota = \"200 GB\"
# Leaves it to control what is kept within the quota, beside what `include` names.
#ordered = true

# What is given beyond a rate. None of it is ever exceeded; whoever comes when it is used up is sent elsewhere.
#[budget]
# Most that one connection is sent.
#connection_rate = \"50 Mbit/s\"
# \"on\": the kernel's queue (HTB) keeps donated_rate too, where no queue was set up; \"replace\": also there.
#hard_limit = \"off\"

# A volume per month, from a random time within start_within_hours after midnight of start_day. counts: \"sent\" or
# \"both\" directions, as the provider does.
#[budget.month]
#volume = \"10 TB\"
#start_day = 1
#start_within_hours = 6
#counts = \"sent\"

# Only what the owner's own traffic leaves of the link, less a margin. Without link: what the driver says it carries.
#[budget.owner_first]
#link = \"1 Gbit/s\"
#margin = \"10 Mbit/s\"

# For who pays by the 95th percentile: beyond the commitment only in the 5 % of samples that are free.
#[budget.percentile]
#commitment = \"100 Mbit/s\"
#burst = \"500 Mbit/s\"

# Hundredths of the rate that a class keeps, whatever the other wants.
#[budget.minimum]
#delivery = 50
#sync = 20

# Hours of the week with their own rates in place of donated_rate and sync_rate, also above them; the first that fits
# holds. May be repeated.
#[[budget.hours]]
#days = \"mon-fri\"
#from = \"08:00\"
#until = \"18:00\"
#rate = \"20 Mbit/s\"
#sync_rate = \"10 Mbit/s\"

# The bounds of the server; `dataplane run --help` lists them all.
#[limits]
#connections_max = 20000
# Of one client address; a quarter of all unless set.
#connections_per_address_max = 5000

#[log]
# \"text\" or \"json\".
#format = \"text\"
# As RUST_LOG would say it.
#filter = \"info\"
# A file, \"-\" for the standard output, or \"off\".
#access = \"off\"
# \"common\", \"combined\" or \"json\"; one response in access_sample is recorded.
#access_format = \"combined\"
#access_sample = 1
";

#[cfg(test)]
mod tests;
