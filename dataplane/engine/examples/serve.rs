//! Serves a directory until its standard input ends: `serve DIR [ADDRESS] [RINGS]`; it prints where.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use freshet_engine::{DirectorySite, Limits, Listener, Server};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().context("expected the directory to serve as the first argument")?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned()).parse()?;
    let rings = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let site = DirectorySite::open(&directory).with_context(|| format!("cannot open {directory}"))?;
    let running = Server {
        listeners: vec![Listener { address, inherited: None, class: 0, mark: None, site: Arc::new(site) }],
        rings,
        limits: Limits::default(),
        pacer: None,
        observer: None,
    }
    .start()?;
    println!("serving {directory} on http://{}; end with ^D", running.addresses()[0]);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:?}", running.stats());
    running.stop(Duration::from_secs(10));
    Ok(())
}
