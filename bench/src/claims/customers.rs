//! Customers: each is a curl of its own that starts when its time has come, follows redirects, waits as long as a
//! `Retry-After` says, goes on where a connection broke off, and is compared with the repository in the end.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freshet_api::ContentHash;
use freshet_testbed::{Process, Program};

use super::stage::Stage;
use super::workload::Wish;

/// A customer that has its file.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) wish: Wish,
    /// From its start until it had all, seconds.
    pub(super) secs: f64,
}

/// Something that is done once while customers come.
pub(super) type Deed<'a> = Box<dyn FnOnce(&mut Stage) -> Result<()> + 'a>;

/// What is asked again and again meanwhile.
pub(super) type Watch<'a> = Box<dyn FnMut(&Stage, f64) -> Result<()> + 'a>;

/// All who come, and what happens meanwhile.
pub(super) struct Course<'a> {
    pub(super) wishes: Vec<Wish>,
    /// Bytes per second that a customer takes at most.
    pub(super) customer_rate: u64,
    /// Seconds after the beginning, and what is done then.
    pub(super) deeds: Vec<(f64, Deed<'a>)>,
    /// Asked every second with the seconds since the beginning.
    pub(super) watch: Option<Watch<'a>>,
}

/// What came of it.
pub(super) struct Told {
    pub(super) served: Vec<Served>,
    /// From the beginning until the last had its file.
    pub(super) secs: f64,
}

impl Course<'_> {
    /// Lets them come, and waits until all are served.
    ///
    /// # Errors
    /// When one is not served, or has other bytes than the repository in the end.
    pub(super) fn run(mut self, stage: &mut Stage, downloads: &Path) -> Result<Told> {
        fs::create_dir_all(downloads)?;
        self.deeds.sort_by(|one, other| other.0.total_cmp(&one.0));
        let begun = Instant::now();
        let mut coming = self.wishes.iter().enumerate().collect::<Vec<_>>();
        coming.sort_by(|one, other| other.1.at.total_cmp(&one.1.at));
        let mut under_way: Vec<(usize, Instant, Process)> = Vec::new();
        let mut served = Vec::with_capacity(self.wishes.len());
        let mut last = 0.0;
        let mut watched = 0.0;
        let limit = coming.first().map_or(0.0, |(_, wish)| wish.at) + PATIENCE.as_secs_f64();
        while !(coming.is_empty() && under_way.is_empty() && self.deeds.is_empty()) {
            let now = begun.elapsed().as_secs_f64();
            if stage.cancel.is_cancelled() {
                bail!("interrupted");
            }
            if now > limit {
                bail!("{} customers were not served within {limit:.0} s", under_way.len());
            }
            while let Some((_, deed)) = self.deeds.pop_if(|(at, _)| *at <= now) {
                deed(stage)?;
            }
            while let Some((number, wish)) = coming.pop_if(|(_, wish)| wish.at <= now) {
                let host = &stage.customers[number % stage.customers.len()];
                let started = Instant::now();
                let to = downloads.join(number.to_string());
                let customer = CUSTOMERS.fetch_add(1, Ordering::Relaxed);
                let program = download(customer, &stage.url(&wish.path), &to, self.customer_rate);
                under_way.push((number, started, host.start(&format!("customer-{number}"), &program)?));
            }
            let mut ended = Vec::new();
            for (place, (number, started, process)) in under_way.iter().enumerate() {
                if !process.is_running()? {
                    let status = process.wait(PATIENCE)?;
                    if !status.success() {
                        bail!("customer {number} ended with {status}: {}", process.log()?.trim());
                    }
                    served.push(Served {
                        wish: self.wishes[*number].clone(),
                        secs: started.elapsed().as_secs_f64(),
                    });
                    last = begun.elapsed().as_secs_f64();
                    ended.push(place);
                }
            }
            for place in ended.into_iter().rev() {
                under_way.swap_remove(place);
            }
            if now - watched >= 1.0 {
                watched = now;
                if let Some(watch) = &mut self.watch {
                    watch(stage, now)?;
                }
            }
            std::thread::sleep(TICK);
        }
        self.compare(stage, downloads)?;
        fs::remove_dir_all(downloads)?;
        Ok(Told { served, secs: last })
    }

    fn compare(&self, stage: &Stage, downloads: &Path) -> Result<()> {
        let hash = |path: PathBuf| -> Result<ContentHash> {
            Ok(ContentHash::of(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?))
        };
        let mut known: HashMap<&str, ContentHash> = HashMap::new();
        for (number, wish) in self.wishes.iter().enumerate() {
            let expected = match known.get(wish.path.as_str()) {
                Some(&expected) => expected,
                None => *known.entry(&wish.path).or_insert(hash(stage.repository.join(&wish.path))?),
            };
            if hash(downloads.join(number.to_string()))? != expected {
                bail!("customer {number} got other bytes of {} than the repository has", wish.path);
            }
        }
        Ok(())
    }
}

/// One file by curl, again and again until it is whole. Customers share few addresses here; that each is somebody else is told
/// by its agent, or the front door would take those who ask for the same file for one who asks again.
fn download(customer: u64, url: &str, to: &Path, rate: u64) -> Program {
    let curl = format!(
        "curl --silent --show-error --fail --location --max-redirs 8 --retry 20 --connect-timeout 5 --speed-limit 1 \
         --speed-time 15 --limit-rate {rate} --user-agent 'customer/{customer}' --continue-at - --output '{}' '{url}'",
        to.display()
    );
    let again = "tries=$((tries + 1)); [ $tries -lt 40 ] || exit 1; sleep 0.2";
    Program::new("sh").args(["-c".to_owned(), format!("tries=0; until {curl}; do {again}; done")])
}

/// Customers of all courses so far.
static CUSTOMERS: AtomicU64 = AtomicU64::new(0);
/// For the last customer to be served after it came.
const PATIENCE: Duration = Duration::from_secs(240);
/// How exactly a download's end is noticed.
const TICK: Duration = Duration::from_millis(5);
