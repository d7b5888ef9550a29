//! Where requests come from: a Poisson stream, crowds at releases, a synthetic trace or a file.

use anyhow::{Error, Result};
use freshet_policy::draw::{Draw, mix};

use super::scenario::{Scenario, Sizes, Workload as Kind};
use super::world::exponential;
use crate::trace::{Event, FileEntry, Reader, Recipe, Synthesis, What};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Asked {
    /// None when the trace only tells of a release.
    pub(super) file: Option<Ask>,
}

/// A request for a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ask {
    pub(super) client: u64,
    pub(super) number: u32,
    pub(super) size: f64,
    /// The release it belongs to, if it is not part of the repository that was there.
    pub(super) release: Option<u32>,
}

impl Asked {
    pub(super) fn size(&self) -> f64 {
        self.file.map_or(0.0, |file| file.size)
    }

    pub(super) fn release(&self) -> Option<u32> {
        self.file.and_then(|file| file.release)
    }

    pub(super) fn file_number(&self) -> u32 {
        self.file.map_or(0, |file| file.number)
    }
}

/// A release that a trace told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) size: f64,
}

/// All requests, in order of time.
#[derive(Debug)]
pub(super) struct Workload {
    draw: Draw,
    stream: Stream,
    upcoming: Option<(f64, Asked)>,
    crowds: Vec<Crowd>,
    releases: Vec<(f64, u32, f64)>,
    published: Vec<Published>,
    error: Option<Error>,
}

#[derive(Debug)]
enum Stream {
    None,
    Poisson { per_second: f64, sizes: Sizes },
    Listed(std::vec::IntoIter<(f64, u64)>),
    Synthesis(Box<Synthesis>, TraceReleases),
    File(Box<Reader>, TraceReleases),
}

/// Which files of a trace belong to which release.
#[derive(Debug, Default)]
struct TraceReleases {
    /// First file and number of files, ascending.
    spans: Vec<(u32, u32)>,
    offset: u32,
}

impl TraceReleases {
    fn of(&self, file: u32) -> Option<u32> {
        let place = self.spans.partition_point(|&(first, _)| first <= file).checked_sub(1)?;
        let (first, count) = self.spans[place];
        (file < first + count).then_some(place as u32 + self.offset)
    }
}

/// The customers of one release, by their times of arrival, latest first.
#[derive(Debug)]
struct Crowd {
    release: u32,
    size: f64,
    arrivals: Vec<f64>,
}

impl Workload {
    /// The workload of `scenario` for volunteers that donate `volunteers` bytes per second together.
    pub(super) fn new(scenario: &Scenario, volunteers: f64, seed: u64) -> Result<Workload> {
        let trace = TraceReleases { spans: Vec::new(), offset: scenario.releases.len() as u32 };
        let stream = match &scenario.workload {
            Kind::None => Stream::None,
            Kind::Poisson { load, requests_per_second, sizes } => {
                let by_load = load * volunteers / sizes.mean();
                Stream::Poisson { per_second: requests_per_second + by_load, sizes: *sizes }
            }
            Kind::Trace { requests_per_day, files } => {
                let days = scenario.seconds / 86_400.0;
                let recipe = Recipe { days, requests_per_day: *requests_per_day, files: *files, seed };
                Stream::Synthesis(Box::new(Synthesis::new(recipe)), trace)
            }
            Kind::Listed { requests } => Stream::Listed(requests.clone().into_iter()),
            Kind::File { path } => Stream::File(Box::new(Reader::open(path)?), trace),
        };
        let mut draw = Draw::new(mix(seed ^ 0x776f_726b));
        let releases = scenario
            .releases
            .iter()
            .map(|release| (release.crowd_ebb_seconds, release.crowd, release.size.0 as f64))
            .collect();
        let mut workload = Workload {
            stream,
            upcoming: None,
            crowds: Vec::new(),
            releases,
            published: Vec::new(),
            error: None,
            draw: Draw::new(draw.bits()),
        };
        workload.advance(0.0);
        Ok(workload)
    }

    /// When the next request comes.
    pub(super) fn peek(&self) -> Option<f64> {
        let crowd =
            self.crowds.iter().filter_map(|crowd| crowd.arrivals.last().copied()).min_by(f64::total_cmp);
        match (self.upcoming, crowd) {
            (Some((at, _)), Some(crowd)) => Some(at.min(crowd)),
            (Some((at, _)), None) => Some(at),
            (None, crowd) => crowd,
        }
    }

    /// The next request.
    pub(super) fn take(&mut self) -> Option<Asked> {
        let at = self.peek()?;
        if self.upcoming.is_some_and(|(upcoming, _)| upcoming <= at) {
            let (_, asked) = self.upcoming.take()?;
            self.advance(at);
            return Some(asked);
        }
        let crowd = self.crowds.iter_mut().find(|crowd| crowd.arrivals.last() == Some(&at))?;
        crowd.arrivals.pop();
        let (release, size) = (crowd.release, crowd.size);
        let file =
            Ask { client: self.draw.bits(), number: RELEASE_FILES + release, size, release: Some(release) };
        Some(Asked { file: Some(file) })
    }

    /// A release of the scenario is out: its crowd sets off.
    pub(super) fn publish(&mut self, release: u32, now: f64) {
        let (ebb, crowd, size) = self.releases[release as usize];
        let mut arrivals: Vec<f64> = (0..crowd).map(|_| now + exponential(&mut self.draw, ebb)).collect();
        arrivals.sort_by(|a, b| b.total_cmp(a));
        self.crowds.push(Crowd { release, size, arrivals });
    }

    /// Releases that the trace told of since the last call.
    pub(super) fn take_published(&mut self) -> Vec<Published> {
        std::mem::take(&mut self.published)
    }

    /// What went wrong while reading a trace.
    pub(super) fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    fn advance(&mut self, now: f64) {
        self.upcoming = match &mut self.stream {
            Stream::None => None,
            Stream::Poisson { per_second, .. } if *per_second <= 0.0 => None,
            Stream::Poisson { per_second, sizes } => {
                let at = now + exponential(&mut self.draw, 1.0 / *per_second);
                let size = sizes.draw(&mut self.draw);
                let client = self.draw.bits();
                let number = (self.draw.bits() >> 33) as u32;
                Some((at, Asked { file: Some(Ask { client, number, size, release: None }) }))
            }
            Stream::Listed(requests) => requests.next().map(|(at, bytes)| {
                let (client, number) = (self.draw.bits(), (self.draw.bits() >> 33) as u32);
                (at, Asked { file: Some(Ask { client, number, size: bytes as f64, release: None }) })
            }),
            Stream::Synthesis(synthesis, spans) => synthesis
                .next()
                .map(|event| asked(event, spans, &synthesis.repository().files, &mut self.published)),
            Stream::File(reader, spans) => match reader.next() {
                Ok(event) => {
                    event.map(|event| asked(event, spans, &reader.repository().files, &mut self.published))
                }
                Err(error) => {
                    self.error = Some(error);
                    None
                }
            },
        };
    }
}

fn asked(
    event: Event,
    spans: &mut TraceReleases,
    files: &[FileEntry],
    published: &mut Vec<Published>,
) -> (f64, Asked) {
    let file = match event.what {
        What::Request { file, client } => Some(Ask {
            client: mix(u64::from(client)),
            number: file,
            size: files[file as usize].size as f64,
            release: spans.of(file),
        }),
        What::Release { first, count } => {
            spans.spans.push((first, count));
            let size =
                files[first as usize..(first + count) as usize].iter().map(|file| file.size as f64).sum();
            published.push(Published { size });
            None
        }
    };
    (event.at, Asked { file })
}

impl Sizes {
    fn mean(&self) -> f64 {
        match *self {
            Sizes::Fixed { size } => size.0 as f64,
            Sizes::Pareto { low, high, alpha } => {
                let (low, high) = (low.0 as f64, high.0 as f64);
                let norm = 1.0 - (low / high).powf(alpha);
                if (alpha - 1.0).abs() < 1e-9 {
                    low / norm * (high / low).ln()
                } else {
                    low.powf(alpha) / norm * alpha / (alpha - 1.0)
                        * (low.powf(1.0 - alpha) - high.powf(1.0 - alpha))
                }
            }
        }
    }

    fn draw(&self, draw: &mut Draw) -> f64 {
        match *self {
            Sizes::Fixed { size } => size.0 as f64,
            Sizes::Pareto { low, high, alpha } => {
                let (low, high) = (low.0 as f64, high.0 as f64);
                let norm = 1.0 - (low / high).powf(alpha);
                low / (1.0 - draw.unit() * norm).powf(1.0 / alpha)
            }
        }
    }
}

/// Numbers of files of the scenario's releases begin here.
const RELEASE_FILES: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use freshet_api::Bytes;

    use super::*;

    #[test]
    fn drawn_sizes_have_the_mean_that_the_load_is_computed_from() {
        for alpha in [0.6, 1.0, 1.5] {
            let sizes = Sizes::Pareto { low: Bytes(100_000), high: Bytes(100_000_000), alpha };
            let mut draw = Draw::new(3);
            let sum: f64 = (0..400_000).map(|_| sizes.draw(&mut draw)).sum();
            let mean = sum / 400_000.0;
            assert!((mean / sizes.mean() - 1.0).abs() < 0.05, "{alpha}: {mean} {}", sizes.mean());
        }
    }

    #[test]
    fn listed_requests_come_as_they_are_listed() {
        let text = "
            title = 'listed'
            seconds = 10.0
            origin = { uplink = '10 Mbit/s' }
            clients = [{ rate = '10 Mbit/s', part = 1.0 }]
            workload = { kind = 'listed', requests = [[0.5, 100000], [0.5, 70000], [3.0, 80000]] }
        ";
        let mut workload = Workload::new(&Scenario::parse(text).unwrap(), 1.0, 1).unwrap();
        let mut came = Vec::new();
        while let (Some(at), Some(asked)) = (workload.peek(), workload.take()) {
            came.push((at, asked.size()));
        }
        assert_eq!(came, [(0.5, 100_000.0), (0.5, 70_000.0), (3.0, 80_000.0)]);
        assert!(Scenario::parse(&text.replace("[3.0", "[0.1")).is_err());
    }

    #[test]
    fn files_of_a_trace_are_found_in_their_release() {
        let spans = TraceReleases { spans: vec![(10, 5), (20, 1)], offset: 3 };
        assert_eq!(
            [9, 10, 14, 15, 20, 21].map(|file| spans.of(file)),
            [None, Some(3), Some(3), None, Some(4), None]
        );
    }
}
