//! A trace with the statistics of the published workload, from a seed.
//!
//! Published (Shah et al., "Resource-Efficient Software Delivery Using Volunteer Assistance"): ten days,
//! about ten distributions, 2.2 million files of 2.86 TB, 91 % of them below 1 MB, images 71 % of the
//! bytes sent, 17 % of large files identical, flash crowds at releases. Not published, and assumed
//! here: sizes of packages are lognormal, popularity falls as a power of rank, requests follow the day.

use freshet_policy::draw::Draw;

use super::{Event, FileEntry, FileKind, Repository, What};

/// What to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipe {
    /// Days.
    pub(crate) days: f64,
    /// Requests per day on average.
    pub(crate) requests_per_day: f64,
    /// Files at the start.
    pub(crate) files: u32,
    /// Seed.
    pub(crate) seed: u64,
}

/// A trace that is made as it is consumed.
#[derive(Debug)]
pub(crate) struct Synthesis {
    recipe: Recipe,
    repository: Repository,
    draw: Draw,
    now: f64,
    images: u32,
    /// Requests per second for images and for packages, before the day's course.
    image_rate: f64,
    package_rate: f64,
    planned: Vec<Planned>,
    next_release: usize,
    crowds: Vec<Crowd>,
    fresh: Fresh,
    pending: Option<Event>,
    zipf_packages: Zipf,
    zipf_images: Zipf,
}

#[derive(Clone, Copy, Debug)]
struct Planned {
    at: f64,
    distribution: u8,
    images: bool,
}

#[derive(Clone, Copy, Debug)]
struct Crowd {
    from: f64,
    first: u32,
    count: u32,
    per_second: f64,
}

/// The packages of the last update of any distribution.
#[derive(Clone, Copy, Debug, Default)]
struct Fresh {
    first: u32,
    count: u32,
    at: f64,
}

impl Synthesis {
    /// Makes the repository and plans the releases.
    pub(crate) fn new(recipe: Recipe) -> Synthesis {
        let mut draw = Draw::new(recipe.seed);
        let images = (recipe.files / FILES_PER_IMAGE).max(DISTRIBUTIONS as u32);
        let repository = repository(recipe.files, images, &mut draw);
        let zipf_packages = Zipf::new(recipe.files - images, PACKAGE_SKEW);
        let zipf_images = Zipf::new(images, IMAGE_SKEW);
        let (package_mean, image_mean) =
            mean_asked(&repository, images, &zipf_packages, &zipf_images, &mut draw);
        // Images are so much of the requests that they are IMAGE_BYTES of the bytes.
        let odds = IMAGE_BYTES / (1.0 - IMAGE_BYTES) * package_mean / image_mean;
        let per_second = recipe.requests_per_day / DAY;
        let image_rate = per_second * odds / (1.0 + odds);
        let planned = plan(&recipe, &mut draw);
        Synthesis {
            recipe,
            repository,
            draw,
            now: 0.0,
            images,
            image_rate,
            package_rate: per_second - image_rate,
            planned,
            next_release: 0,
            crowds: Vec::new(),
            fresh: Fresh::default(),
            pending: None,
            zipf_packages,
            zipf_images,
        }
    }

    /// The files so far; it grows while the trace is made.
    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The next event, or none at the end.
    pub(crate) fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.pending.take() {
            return Some(event);
        }
        let course = course_of_day(self.now);
        let steady_images = self.image_rate * (1.0 - CROWD_PART) * course;
        let packages = self.package_rate * course;
        let now = self.now;
        let crowd_rate = |crowd: &Crowd| crowd.per_second * (-(now - crowd.from) / CROWD_EBB).exp();
        let crowds: f64 = self.crowds.iter().map(crowd_rate).sum();
        let rate = steady_images + packages + crowds;
        let gap = (-(1.0 - self.draw.unit()).ln() / rate).min(COURSE_STEP);
        let reached = self.now + gap;
        if let Some(planned) = self.planned.get(self.next_release).copied()
            && planned.at <= reached
        {
            self.now = planned.at;
            self.next_release += 1;
            return Some(self.release(planned));
        }
        self.now = reached;
        if self.now >= self.recipe.days * DAY {
            return None;
        }
        let mut place = self.draw.unit() * rate;
        let mut file = None;
        for crowd in &self.crowds {
            place -= crowd_rate(crowd);
            if place < 0.0 {
                // Within a release, half of the crowd wants the first image.
                let rank = (self.draw.unit().powi(2) * f64::from(crowd.count)) as u32;
                file = Some(crowd.first + rank.min(crowd.count - 1));
                break;
            }
        }
        let file = file.unwrap_or_else(|| {
            if place < steady_images {
                self.zipf_images.draw(&mut self.draw)
            } else if self.fresh.count > 0 && self.now - self.fresh.at < DAY && self.draw.unit() < FRESH_PART
            {
                self.fresh.first + self.draw.below(self.fresh.count as usize) as u32
            } else {
                self.images + self.zipf_packages.draw(&mut self.draw)
            }
        });
        let client = self.draw.below(CLIENTS) as u32;
        Some(Event { at: self.now, what: What::Request { file, client } })
    }

    fn release(&mut self, planned: Planned) -> Event {
        let first = self.repository.files.len() as u32;
        let count = if planned.images {
            RELEASE_IMAGES
        } else {
            UPDATE_FILES_MIN + self.draw.below(UPDATE_FILES_MORE) as u32
        };
        for number in 0..count {
            let (size, kind) = if planned.images {
                (image_size(&mut self.draw), FileKind::Image)
            } else {
                (package_size(&mut self.draw).min(UPDATE_FILE_BYTES_MAX), FileKind::Package)
            };
            let content = first + number;
            self.repository.files.push(FileEntry { size, content, kind, distribution: planned.distribution });
        }
        if planned.images {
            let releases = self.planned.iter().filter(|planned| planned.images).count().max(1);
            let all = self.image_rate * self.recipe.days * DAY * CROWD_PART / releases as f64;
            // What comes after the end of the trace is lost to it.
            let seen = 1.0 - (-(self.recipe.days * DAY - planned.at) / CROWD_EBB).exp();
            let per_second = all / CROWD_EBB / seen.max(0.1);
            self.crowds.push(Crowd { from: planned.at, first, count, per_second });
        } else {
            self.fresh = Fresh { first, count, at: planned.at };
        }
        Event { at: planned.at, what: What::Release { first, count } }
    }
}

/// Draws ranks whose probability falls as `rank^-skew`, by inverting the continuous distribution.
#[derive(Clone, Copy, Debug)]
struct Zipf {
    count: f64,
    skew: f64,
}

impl Zipf {
    fn new(count: u32, skew: f64) -> Zipf {
        Zipf { count: f64::from(count.max(1)), skew }
    }

    fn draw(&self, draw: &mut Draw) -> u32 {
        let exponent = 1.0 - self.skew;
        let top = (self.count + 1.0).powf(exponent) - 1.0;
        let rank = (draw.unit() * top + 1.0).powf(1.0 / exponent) - 1.0;
        (rank as u32).min(self.count as u32 - 1)
    }
}

fn repository(files: u32, images: u32, draw: &mut Draw) -> Repository {
    let mut entries = Vec::with_capacity(files as usize + 64);
    for number in 0..files {
        let (size, kind) = if number < images {
            (image_size(draw), FileKind::Image)
        } else {
            (package_size(draw), FileKind::Package)
        };
        let distribution = draw.below(DISTRIBUTIONS) as u8;
        entries.push(FileEntry { size, content: number, kind, distribution });
    }
    // The tail of the sample decides the sum: scale the large packages to the published total.
    let wanted = TOTAL_BYTES * f64::from(files) / TOTAL_FILES;
    let sum_of = |entries: &[FileEntry], pick: &dyn Fn(&FileEntry) -> bool| -> f64 {
        entries.iter().filter(|entry| pick(entry)).map(|entry| entry.size as f64).sum()
    };
    let is_large_package = |entry: &FileEntry| entry.kind == FileKind::Package && entry.size >= LARGE_BYTES;
    let large = sum_of(&entries, &is_large_package);
    let rest = sum_of(&entries, &|entry| !is_large_package(entry));
    let factor = ((wanted - rest) / large).max(0.05);
    for entry in entries.iter_mut().filter(|entry| is_large_package(entry)) {
        entry.size = ((entry.size as f64 * factor) as u64).max(LARGE_BYTES);
    }
    let mut last_large: Option<(u64, u32)> = None;
    for entry in entries.iter_mut().filter(|entry| entry.size >= LARGE_BYTES) {
        match last_large {
            Some((size, content)) if draw.unit() < IDENTICAL_PART / (1.0 - IDENTICAL_PART / 2.0) / 2.0 => {
                (entry.size, entry.content) = (size, content);
            }
            _ => {}
        }
        last_large = Some((entry.size, entry.content));
    }
    Repository { files: entries }
}

/// Mean size of the packages and of the images that are asked for.
fn mean_asked(
    repository: &Repository,
    images: u32,
    packages_zipf: &Zipf,
    images_zipf: &Zipf,
    draw: &mut Draw,
) -> (f64, f64) {
    let mut mean = |zipf: &Zipf, offset: u32| {
        let sum: f64 =
            (0..MEAN_DRAWS).map(|_| repository.files[(offset + zipf.draw(draw)) as usize].size as f64).sum();
        sum / f64::from(MEAN_DRAWS)
    };
    (mean(packages_zipf, images), mean(images_zipf, 0))
}

fn plan(recipe: &Recipe, draw: &mut Draw) -> Vec<Planned> {
    let mut planned = Vec::new();
    for day in 0..recipe.days.ceil() as u32 {
        for distribution in 0..DISTRIBUTIONS as u8 {
            let at = (f64::from(day) + draw.unit()) * DAY;
            planned.push(Planned { at, distribution, images: false });
        }
        if day % IMAGE_RELEASE_DAYS == 1 {
            let at = f64::from(day) * DAY + (10.0 + 6.0 * draw.unit()) * 3600.0;
            planned.push(Planned { at, distribution: draw.below(DISTRIBUTIONS) as u8, images: true });
        }
    }
    planned.retain(|planned| planned.at < recipe.days * DAY);
    planned.sort_by(|a, b| a.at.total_cmp(&b.at));
    planned
}

fn package_size(draw: &mut Draw) -> u64 {
    let size = (PACKAGE_LOG_MEDIAN + PACKAGE_LOG_SIGMA * normal(draw)).exp();
    (size as u64).clamp(300, PACKAGE_BYTES_MAX)
}

fn image_size(draw: &mut Draw) -> u64 {
    let size = (IMAGE_LOG_MEDIAN + IMAGE_LOG_SIGMA * normal(draw)).exp();
    (size as u64).clamp(50_000_000, 9_000_000_000)
}

/// A standard normal number (Box and Muller).
pub(crate) fn normal(draw: &mut Draw) -> f64 {
    let radius = (-2.0 * (1.0 - draw.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * draw.unit()).cos()
}

/// How busy a time of the week is, 1 on average over it: peak at 14:00, weekends quieter.
fn course_of_day(now: f64) -> f64 {
    let hour = now % DAY / 3600.0;
    let weekend = (now / DAY) as u64 % 7 >= 5;
    let day = if weekend { 0.7 } else { 1.12 };
    day * (1.0 + 0.5 * ((hour - 14.0) / 24.0 * std::f64::consts::TAU).cos())
}

const DAY: f64 = 86_400.0;
const DISTRIBUTIONS: usize = 10;
const TOTAL_FILES: f64 = 2.2e6;
const TOTAL_BYTES: f64 = 2.86e12;
const LARGE_BYTES: u64 = 1_000_000;
const IMAGE_BYTES: f64 = 0.71;
const IDENTICAL_PART: f64 = 0.17;
const FILES_PER_IMAGE: u32 = 4_000;
/// With these, 91 % of packages are below 1 MB and their mean is what the total leaves for them.
const PACKAGE_LOG_MEDIAN: f64 = 10.4;
const PACKAGE_LOG_SIGMA: f64 = 2.547;
const PACKAGE_BYTES_MAX: u64 = 2_000_000_000;
const IMAGE_LOG_MEDIAN: f64 = 20.7;
const IMAGE_LOG_SIGMA: f64 = 0.9;
const PACKAGE_SKEW: f64 = 0.8;
const IMAGE_SKEW: f64 = 0.9;
/// Part of the requests for images that are crowds at releases.
const CROWD_PART: f64 = 0.35;
const CROWD_EBB: f64 = 12.0 * 3600.0;
const RELEASE_IMAGES: u32 = 8;
const IMAGE_RELEASE_DAYS: u32 = 3;
const UPDATE_FILES_MIN: u32 = 150;
const UPDATE_FILES_MORE: usize = 500;
const UPDATE_FILE_BYTES_MAX: u64 = 50_000_000;
/// Part of the requests for packages that go to the newest ones.
const FRESH_PART: f64 = 0.15;
const CLIENTS: usize = 200_000;
const MEAN_DRAWS: u32 = 200_000;
/// The day's course is followed in steps of at most this.
const COURSE_STEP: f64 = 60.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(seed: u64) -> Recipe {
        Recipe { days: 4.0, requests_per_day: 20_000.0, files: 60_000, seed }
    }

    fn all(recipe: Recipe) -> (Vec<Event>, Repository) {
        let mut synthesis = Synthesis::new(recipe);
        let mut events = Vec::new();
        while let Some(event) = synthesis.next() {
            events.push(event);
        }
        (events, synthesis.repository().clone())
    }

    #[test]
    fn the_same_seed_makes_the_same_trace_in_order_of_time() {
        let (first, files) = all(recipe(5));
        let (again, _) = all(recipe(5));
        assert!(first == again);
        assert!(first.windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert!(first.iter().all(|event| match event.what {
            What::Request { file, .. } => (file as usize) < files.files.len(),
            What::Release { first, count } => (first + count) as usize <= files.files.len(),
        }));
        assert!(all(recipe(6)).0 != first);
    }

    #[test]
    fn the_published_statistics_come_out() {
        let (events, repository) = all(recipe(2));
        let files = &repository.files[..60_000];
        let small = files.iter().filter(|file| file.size < 1_000_000).count() as f64 / 60_000.0;
        assert!((small - 0.91).abs() < 0.01, "{small}");
        let total: f64 = files.iter().map(|file| file.size as f64).sum();
        let wanted = TOTAL_BYTES * 60_000.0 / TOTAL_FILES;
        assert!((total / wanted - 1.0).abs() < 0.05, "{total} of {wanted}");
        let requests = events.iter().filter(|event| matches!(event.what, What::Request { .. })).count();
        assert!((requests as f64 / 80_000.0 - 1.0).abs() < 0.15, "{requests}");
    }
}
