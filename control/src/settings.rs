//! How `control serve` is set up: flags and TOML read into one checked [`Settings`]; nothing is opened here.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};
use serde::{Deserialize, Serialize};

use crate::balance::{NetworkError, PrefixRule};
use crate::catalog::{Glob, Patterns};
use crate::routing::DeliveryTarget;

/// What a flag or the configuration file may say. Keys of the file are the flags' names with `_` for `-`; a
/// flag wins over the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Root of the repository to be served; never written to
    #[arg(long, value_name = "DIR")]
    pub repo: Option<PathBuf>,
    /// Directory for what must last: registry, checksums, keys; made if missing, and not within the repository
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where customers connect [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where volunteers fetch blobs [default: the host of `listen`, and any free port, the same after a restart]
    #[arg(long, value_name = "ADDR:PORT")]
    pub sync_listen: Option<SocketAddr>,
    /// Where the API (TLS) listens, for volunteers and `ctl` [default: the host of `listen`, port 8443]
    #[arg(long, value_name = "ADDR:PORT")]
    pub api: Option<SocketAddr>,
    /// Where the status page, /metrics, /healthz and /readyz are served, in plain HTTP and without a key, such as
    /// 127.0.0.1:8380; put a proxy in front to publish the page [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    pub status: Option<SocketAddr>,
    /// The front door as customers reach it [default: http:// and `listen`, if that names a host]
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// `host:port` of the API as it goes into join strings [default: `api`, if that names a host]
    #[arg(long, value_name = "HOST:PORT")]
    pub api_name: Option<String>,
    /// The sync port as volunteers reach it [default: http:// and `sync-listen`, if that names a host]
    #[arg(long, value_name = "URL")]
    pub sync_url: Option<String>,
    /// Between two heartbeats of a volunteer, milliseconds, 50 to 60000; one that is silent for 5 of them
    /// and for 3 seconds is taken for lost [default: 1000]
    #[arg(long, value_name = "MS")]
    pub heartbeat_ms: Option<u64>,
    /// Files smaller than this are sent by the origin itself, such as `64 KiB` [default: 64 KiB]
    #[arg(long, value_name = "SIZE")]
    pub direct_below: Option<Bytes>,
    /// Seconds for which a path whose content changed is sent by the origin itself [default: 300]
    #[arg(long, value_name = "SECS")]
    pub changed_window_secs: Option<u64>,
    /// Seconds for which a redirect's ticket is good, 10 to 86400 [default: 900]
    #[arg(long, value_name = "SECS")]
    pub ticket_secs: Option<u64>,
    /// Seconds for which a customer who asks again for the same file is sent elsewhere, up to 3600 [default: 30]
    #[arg(long, value_name = "SECS")]
    pub avoid_secs: Option<u64>,
    /// Other volunteers named in `Link` fields of a redirect, up to 8 [default: 2]
    #[arg(long, value_name = "N")]
    pub duplicates: Option<usize>,
    /// Seconds for which a join string is good, 60 to 2592000 [default: 86400]
    #[arg(long, value_name = "SECS")]
    pub join_secs: Option<u64>,
    /// Whether directories are listed [default: true]
    #[arg(long, value_name = "BOOL")]
    pub listings: Option<bool>,
    /// More paths that the origin always sends itself, beside the known indexes, such as `*.idx` (repeatable)
    #[arg(long = "metadata", value_name = "GLOB")]
    pub metadata: Option<Vec<String>>,
    /// More indexes that volunteers must show only after all other files (repeatable)
    #[arg(long = "last", value_name = "GLOB")]
    pub last: Option<Vec<String>>,
    /// Seconds between two walks over the whole repository; changes are usually seen at once [default: 600]
    #[arg(long, value_name = "SECS")]
    pub rescan_secs: Option<u64>,
    /// Milliseconds for which the tree must have been left alone before changes are published [default: 2000]
    #[arg(long, value_name = "MS")]
    pub quiet_ms: Option<u64>,
    /// Seconds after which new files are published even if the tree is never quiet [default: 30]
    #[arg(long, value_name = "SECS")]
    pub hold_secs: Option<u64>,
    /// Threads that read and hash files, 1 to 64 [default: one per core, up to 4]
    #[arg(long, value_name = "N")]
    pub hash_threads: Option<usize>,
    /// Threads of the front door, 0 to 256; 0 is one per core [default: 0]
    #[arg(long, value_name = "N")]
    pub rings: Option<usize>,
    /// Open connections of front door and sync port together at most, of one client address (an IPv6 /64 counts as
    /// one) a quarter of them [default: 20000]
    #[arg(long, value_name = "N")]
    pub connections_max: Option<usize>,
    /// Seconds for which downloads may go on after SIGTERM [default: 10]
    #[arg(long, value_name = "SECS")]
    pub grace_secs: Option<u64>,
    /// What the origin's uplink gives to volunteers' sync, such as `200 Mbit/s`, at least 1 Mbit/s; the sync port is
    /// held to it [default: no limit; what it can send is measured]
    #[arg(long, value_name = "RATE")]
    pub sync_rate: Option<BytesPerSec>,
    /// Copies of what is new that the origin sends to the swarm at most, 1 to 100: more is faster where its uplink is
    /// larger than the volunteers'; pieces that nobody has any more are sent again beyond it [default: 1.05]
    #[arg(long, value_name = "COPIES")]
    pub origin_copies: Option<f64>,
    /// Packs and recipes for the swarm kept in the state directory at most, beside those of the last two releases,
    /// from 64 MiB [default: 8 GiB]
    #[arg(long, value_name = "SIZE")]
    pub spool_max: Option<Bytes>,
    /// Volunteers that clients of a prefix prefer, such as `192.0.2.0/24=south,north` (repeatable)
    #[arg(long = "prefer", value_name = "PREFIX=NAMES")]
    pub prefer: Option<Vec<String>>,
    /// A database in MaxMind's format (ASN, country, city) that says who is near to whom (repeatable)
    #[arg(long = "geo-database", value_name = "FILE")]
    pub geo_databases: Option<Vec<PathBuf>>,
    /// Form of the log on standard error; what is logged is set by RUST_LOG [default: text]
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

macro_rules! over {
    ($self:ident, $file:ident, $($field:ident),+ $(,)?) => {
        Options { $($field: $self.$field.or($file.$field)),+ }
    };
}

impl Options {
    /// These, and the file's where these say nothing.
    #[must_use]
    pub fn over(self, file: Options) -> Options {
        over!(
            self,
            file,
            repo,
            state,
            listen,
            sync_listen,
            api,
            status,
            public_url,
            api_name,
            sync_url,
            heartbeat_ms,
            direct_below,
            changed_window_secs,
            ticket_secs,
            avoid_secs,
            duplicates,
            join_secs,
            listings,
            metadata,
            last,
            rescan_secs,
            quiet_ms,
            hold_secs,
            hash_threads,
            rings,
            connections_max,
            grace_secs,
            sync_rate,
            origin_copies,
            spool_max,
            prefer,
            geo_databases,
            log_format,
        )
    }
}

/// Everything that `control serve` needs to know, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Root of the repository.
    pub repo: PathBuf,
    /// Directory for what must last.
    pub state: PathBuf,
    /// Front door.
    pub listen: SocketAddr,
    /// Sync port; port 0 takes the one of the last start if it is free, or any.
    pub sync_listen: SocketAddr,
    /// API.
    pub api: SocketAddr,
    /// Status page and metrics; `None` for nowhere.
    pub status: Option<SocketAddr>,
    /// Front door as customers reach it, without a trailing `/`; `None` follows the bound address.
    pub public_url: Option<String>,
    /// API as it goes into join strings; `None` follows the bound address.
    pub api_name: Option<String>,
    /// Sync port as volunteers reach it, without a trailing `/`; `None` follows the bound address.
    pub sync_url: Option<String>,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Files smaller than this many bytes are sent by the origin itself.
    pub direct_below: u64,
    /// How long after a change of content a path is sent by the origin itself.
    pub changed_window: Duration,
    /// How long a ticket is good.
    pub ticket_lifetime: Duration,
    /// How long a customer is not sent to the same volunteer again.
    pub avoid_window: Duration,
    /// Volunteers in `Link` fields at most.
    pub duplicates: usize,
    /// How long a join string is good.
    pub join_lifetime: Duration,
    /// Whether directories are listed.
    pub listings: bool,
    /// What counts as an index.
    pub patterns: Patterns,
    /// Between two walks.
    pub rescan_every: Duration,
    /// How long the tree must have been left alone.
    pub quiet: Duration,
    /// After which new files are published all the same.
    pub hold_max: Duration,
    /// Threads that hash.
    pub hash_threads: usize,
    /// Threads of the front door; 0 is one per core.
    pub rings: usize,
    /// Open connections at most; of one client address a quarter of them.
    pub connections_max: usize,
    /// How long downloads may go on after SIGTERM.
    pub grace: Duration,
    /// What the origin's uplink gives to sync; `None` for no limit.
    pub sync_rate: Option<BytesPerSec>,
    /// Copies that the origin sends to the swarm at most.
    pub origin_copies: f64,
    /// Packs and recipes on disk at most.
    pub spool_max: Bytes,
    /// Whom clients of a prefix prefer.
    pub prefer: Vec<PrefixRule>,
    /// What says where addresses are.
    pub geo_databases: Vec<PathBuf>,
    /// Form of the log.
    pub log_format: LogFormat,
}

impl Settings {
    /// Checks and completes what was given.
    ///
    /// # Errors
    /// [`SettingsError`] for the first thing that is missing or out of its bounds.
    pub fn check(options: Options) -> Result<Self, SettingsError> {
        let listen = options.listen.unwrap_or(LISTEN);
        let sync_listen = options.sync_listen.unwrap_or(SocketAddr::new(listen.ip(), 0));
        let api = options.api.unwrap_or(SocketAddr::new(listen.ip(), API_PORT));
        let repo = required("repo", options.repo)?;
        let state = required("state", options.state)?;
        if inside(&state, &repo) {
            return Err(invalid(
                "state",
                format!("{} is within the repository", state.display()),
                "a directory outside it",
            ));
        }
        named("public-url", options.public_url.is_some(), listen.ip())?;
        named("api-name", options.api_name.is_some(), api.ip())?;
        named("sync-url", options.sync_url.is_some(), sync_listen.ip())?;
        let patterns = |key, globs: Option<Vec<String>>| {
            let globs = globs.unwrap_or_default();
            if globs.len() > GLOBS_MAX {
                return Err(invalid(key, format!("{} patterns", globs.len()), "100 at most"));
            }
            globs
                .into_iter()
                .map(|text| {
                    text.parse().map_err(|error| {
                        invalid(key, format!("{text:?} ({error})"), "a pattern such as `*.idx`")
                    })
                })
                .collect::<Result<Vec<Glob>, _>>()
        };
        let default_hash_threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
        Ok(Self {
            public_url: options.public_url.map(|url| http_url("public-url", &url)).transpose()?,
            api_name: options.api_name.map(host_and_port).transpose()?,
            sync_url: options.sync_url.map(|url| http_url("sync-url", &url)).transpose()?,
            heartbeat: Duration::from_millis(within(
                "heartbeat-ms",
                options.heartbeat_ms,
                1_000,
                50..=60_000,
            )?),
            direct_below: options.direct_below.map_or(64 << 10, |size| size.0),
            changed_window: secs("changed-window-secs", options.changed_window_secs, 300, 0..=2_592_000)?,
            ticket_lifetime: secs("ticket-secs", options.ticket_secs, 900, 10..=86_400)?,
            avoid_window: secs("avoid-secs", options.avoid_secs, 30, 0..=3_600)?,
            duplicates: within("duplicates", options.duplicates, 2, 0..=8)?,
            join_lifetime: secs("join-secs", options.join_secs, 86_400, 60..=2_592_000)?,
            listings: options.listings.unwrap_or(true),
            patterns: Patterns {
                metadata: patterns("metadata", options.metadata)?,
                last: patterns("last", options.last)?,
            },
            rescan_every: secs("rescan-secs", options.rescan_secs, 600, 1..=604_800)?,
            quiet: Duration::from_millis(within("quiet-ms", options.quiet_ms, 2_000, 0..=600_000)?),
            hold_max: secs("hold-secs", options.hold_secs, 30, 0..=86_400)?,
            hash_threads: within("hash-threads", options.hash_threads, default_hash_threads, 1..=64)?,
            rings: within("rings", options.rings, 0, 0..=256)?,
            connections_max: within("connections-max", options.connections_max, 20_000, 1..=1_000_000)?,
            grace: secs("grace-secs", options.grace_secs, 10, 0..=3_600)?,
            sync_rate: options
                .sync_rate
                .map(|rate| {
                    if rate >= SYNC_RATE_MIN {
                        return Ok(rate);
                    }
                    Err(invalid("sync-rate", rate.to_string(), "at least 1 Mbit/s"))
                })
                .transpose()?,
            origin_copies: within("origin-copies", options.origin_copies, 1.05, 1.0..=100.0)?,
            spool_max: match options.spool_max.unwrap_or(SPOOL_MAX) {
                size if size >= SPOOL_LEAST => size,
                size => return Err(invalid("spool-max", size.to_string(), "at least 64 MiB")),
            },
            prefer: prefer(options.prefer.unwrap_or_default())?,
            geo_databases: options.geo_databases.unwrap_or_default(),
            log_format: options.log_format.unwrap_or_default(),
            status: options.status,
            repo,
            state,
            listen,
            sync_listen,
            api,
        })
    }
}

/// What is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Nothing can stand in for it.
    #[error("`{key}` is missing; give --{key} or set it in the configuration file")]
    Missing {
        /// The flag's name.
        key: &'static str,
    },
    /// A name is needed because an address says only "every interface".
    #[error("`{key}` is missing: {address} names no host that others could connect to; give --{key}")]
    Nameless {
        /// The flag's name.
        key: &'static str,
        /// The address.
        address: IpAddr,
    },
    /// It can't be this.
    #[error("`{key}`: expected {expected}, found {found}")]
    Invalid {
        /// The flag's name.
        key: &'static str,
        /// What came.
        found: String,
        /// What would be right.
        expected: String,
    },
}

fn prefer(rules: Vec<String>) -> Result<Vec<PrefixRule>, SettingsError> {
    if rules.len() > PREFIX_RULES_MAX {
        return Err(invalid("prefer", format!("{} rules", rules.len()), "10000 at most"));
    }
    let parse = |rule: String| {
        rule.parse().map_err(|error: NetworkError| {
            invalid("prefer", error.to_string(), "a prefix and volunteers such as `192.0.2.0/24=south,north`")
        })
    };
    rules.into_iter().map(parse).collect()
}

fn required(key: &'static str, path: Option<PathBuf>) -> Result<PathBuf, SettingsError> {
    path.filter(|path| path != Path::new("")).ok_or(SettingsError::Missing { key })
}

fn named(key: &'static str, given: bool, address: IpAddr) -> Result<(), SettingsError> {
    if given || !address.is_unspecified() { Ok(()) } else { Err(SettingsError::Nameless { key, address }) }
}

fn within<T: PartialOrd + Copy + std::fmt::Display>(
    key: &'static str,
    given: Option<T>,
    default: T,
    bounds: std::ops::RangeInclusive<T>,
) -> Result<T, SettingsError> {
    let value = given.unwrap_or(default);
    if bounds.contains(&value) {
        return Ok(value);
    }
    Err(invalid(key, value.to_string(), &format!("{} to {}", bounds.start(), bounds.end())))
}

fn secs(
    key: &'static str,
    given: Option<u64>,
    default: u64,
    bounds: std::ops::RangeInclusive<u64>,
) -> Result<Duration, SettingsError> {
    within(key, given, default, bounds).map(Duration::from_secs)
}

fn http_url(key: &'static str, text: &str) -> Result<String, SettingsError> {
    match DeliveryTarget::parse(text) {
        Some(target) => Ok(target.url.as_ref().to_owned()),
        None => Err(invalid(
            key,
            format!("{text:?}"),
            "a URL such as `http://mirror.example.org:8080`, without a path",
        )),
    }
}

fn host_and_port(text: String) -> Result<String, SettingsError> {
    let authority: Option<http::uri::Authority> = text.parse().ok();
    match authority {
        Some(authority) if authority.port_u16().is_some() && !text.contains('@') => Ok(text),
        _ => Err(invalid(
            "api-name",
            format!("{text:?}"),
            "a host and port such as `control.example.org:8443`",
        )),
    }
}

fn inside(path: &Path, directory: &Path) -> bool {
    let whole = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
    match (whole(path), whole(directory)) {
        (Ok(path), Ok(directory)) => path.starts_with(directory),
        _ => false,
    }
}

fn invalid(key: &'static str, found: String, expected: &str) -> SettingsError {
    SettingsError::Invalid { key, found, expected: expected.to_owned() }
}

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 8080);
const API_PORT: u16 = 8443;
const GLOBS_MAX: usize = 100;
const PREFIX_RULES_MAX: usize = 10_000;
const SYNC_RATE_MIN: BytesPerSec = BytesPerSec(125_000);
const SPOOL_MAX: Bytes = Bytes(8 << 30);
const SPOOL_LEAST: Bytes = Bytes(64 << 20);

#[cfg(test)]
mod tests {
    use freshet_api::config;

    use super::*;

    fn minimal() -> Options {
        Options {
            repo: Some("/srv/repo".into()),
            state: Some("/var/lib/freshet".into()),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            ..Options::default()
        }
    }

    #[test]
    fn a_file_is_read_and_flags_win() {
        let file: Options = config::parse(
            "repo = '/a'\nheartbeat_ms = 500\ndirect_below = '1 MiB'\nlistings = false\nmetadata = ['*.idx']\n",
        )
        .unwrap();
        let settings = Settings::check(minimal().over(file)).unwrap();
        assert_eq!(settings.repo, Path::new("/srv/repo"));
        assert_eq!((settings.heartbeat, settings.direct_below), (Duration::from_millis(500), 1 << 20));
        assert!(!settings.listings && settings.patterns.is_metadata("a/b.idx"));
        assert_eq!(settings.sync_listen, "127.0.0.1:0".parse().unwrap());
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest() {
        let error = config::parse::<Options>("hearbeat_ms = 3\n").unwrap_err();
        assert!(error.to_string().contains("did you mean `heartbeat_ms`?"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_flag() {
        let refused = |options: Options| Settings::check(options).unwrap_err().to_string();
        assert!(refused(Options { repo: None, ..minimal() }).contains("`repo` is missing"));
        let everywhere = Options { listen: Some("0.0.0.0:80".parse().unwrap()), ..minimal() };
        assert!(refused(everywhere.clone()).contains("--public-url"));
        let everywhere = Options { public_url: Some("http://mirror.example".into()), ..everywhere };
        assert!(refused(everywhere.clone()).contains("--api-name"));
        let everywhere = Options { api_name: Some("mirror.example:8443".into()), ..everywhere };
        assert!(refused(everywhere).contains("--sync-url"));
        assert!(refused(Options { heartbeat_ms: Some(5), ..minimal() }).contains("50 to 60000, found 5"));
        let url = Options { public_url: Some("http://a/path".into()), ..minimal() };
        assert!(refused(url).contains("without a path"));
        let name = Options { api_name: Some("host".into()), ..minimal() };
        assert!(refused(name).contains("a host and port"));
        let state = Options { state: Some("/srv/repo/.state".into()), ..minimal() };
        assert!(refused(state).contains("within the repository"));
    }
}
