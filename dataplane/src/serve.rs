//! `dataplane serve`: a directory as a stand-alone static server. It knows nothing of tickets or control.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use freshet_engine::{DirectorySite, Listener, Observer, Pacer, Server, Site};

use crate::access_log;
use crate::budget::{DonationPacer, Rates, WireShare};
use crate::cli::ServeOptions;
use crate::exit::Failure;
use crate::logging::announce;
use crate::signals::{Ask, Signals};

/// Serves until a signal says stop.
///
/// # Errors
/// See [`crate::exit::EXIT_STATUS_HELP`].
pub fn serve(options: &ServeOptions) -> Result<(), Failure> {
    crate::logging::start(options.log_format, None);
    let limits = options.limits.to_limits().map_err(Failure::configuration)?;
    let site = DirectorySite::open(&options.root)
        .with_context(|| {
            format!("cannot serve {}; --root must be a readable directory", options.root.display())
        })
        .map_err(Failure::configuration)?;
    let log = access_log::start(&options.access_log, options.access_log_format, options.access_log_sample)
        .context("cannot open the access log")
        .map_err(Failure::configuration)?;
    // Signals are taken over before the address is told, so that whoever waits for it may send one.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let mut signals = runtime.block_on(async { Signals::listen() }).context("cannot listen to signals")?;

    let site: Arc<dyn Site> = Arc::new(site);
    let listeners = options.listen.iter().map(|&address| Listener {
        address,
        inherited: None,
        class: 0,
        mark: None,
        site: Arc::clone(&site),
    });
    let running = Server {
        listeners: listeners.collect(),
        rings: usize::from(options.rings),
        limits,
        pacer: options.rate.map(|rate| {
            let rates = Rates { sending: Some(rate), ..Rates::NONE };
            // Nothing is counted here, so the headers are those of the address family; both at once have the longer ones.
            let pacer = DonationPacer::with_wire_share(WireShare::of(&options.listen), rates);
            Arc::new(pacer) as Arc<dyn Pacer>
        }),
        observer: log.map(|log| log as Arc<dyn Observer>),
    }
    .start()?;
    for address in running.addresses() {
        announce(format_args!("serving: http://{address}"));
    }

    // There is no configuration to be read again, and the access log follows its rotation by itself.
    while runtime.block_on(signals.next()) == Ask::Reload {}
    tracing::info!(grace_secs = options.grace_secs, "stopping; a second signal ends it at once");
    let grace = Duration::from_secs(options.grace_secs);
    runtime.block_on(signals.unless_hurried(async {
        // The join of the rings' threads blocks.
        let stopped = tokio::task::spawn_blocking(move || running.stop(grace)).await;
        if let Err(error) = stopped {
            tracing::error!(%error, "a ring did not end well");
        }
    }));
    // A grace that was cut short must not be waited for here.
    runtime.shutdown_background();
    Ok(())
}
