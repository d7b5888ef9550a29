//! `dataplane join`: makes this host the volunteer that a join string was made for.
//!
//! May be repeated until it works: the keys are made once per join string and kept, and control answers the same
//! request the same way. Nothing that is there is overwritten.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use freshet_api::enrol::JoinRequest;
use freshet_api::{Class, JoinString};

use crate::cli::JoinOptions;
use crate::config::{self, Template};
use crate::control::{ControlClient, ControlError};
use crate::credential::{self, Credential, Pending, join_mark};
use crate::exit::Failure;
use crate::link::{Dialer, DialerOptions, LinkError};
use crate::logging::announce;

/// Joins, and writes credential and configuration.
///
/// # Errors
/// See [`crate::exit::EXIT_STATUS_HELP`].
pub fn join(options: &JoinOptions) -> Result<(), Failure> {
    crate::logging::start(crate::logging::LogFormat::Text, Some("warn"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let credential = runtime.block_on(obtain(&options.join, &options.state))?;
    announce(format_args!(
        "joined: node {} ({}), control at {}",
        credential.node, credential.name, credential.api
    ));
    write_configuration(options)?;
    match &options.config {
        None => announce(format_args!("next: dataplane run --state {}", options.state.display())),
        Some(config) => announce(format_args!(
            "next: dataplane run --config {} --state {}",
            config.display(),
            options.state.display()
        )),
    }
    Ok(())
}

/// The credential for a join string: the stored one if it was made with it, or a new one from control.
///
/// # Errors
/// See [`crate::exit::EXIT_STATUS_HELP`].
pub async fn obtain(join: &JoinString, state: &Path) -> Result<Credential, Failure> {
    credential::make_state_directory(state).map_err(Failure::configuration)?;
    if let Some(credential) = Credential::load(state).map_err(Failure::configuration)? {
        if credential.joined_with == join_mark(join) {
            Pending::remove(state).context("the credential is stored")?;
            return Ok(credential);
        }
        return Err(Failure::membership(anyhow!(
            "this state directory belongs to node {} ({}) of control at {} already; to join anew, remove {} first (the \
             files stay, and are used again), or choose another --state",
            credential.node,
            credential.name,
            credential.api,
            state.join(credential::FILE_NAME).display()
        )));
    }
    let pending = Pending::for_join(state, join).context("cannot keep the new keys")?;
    let tls = freshet_api::pin::client_config(join.fingerprint).context("cannot set up TLS")?;
    let dialer = Dialer::new(DialerOptions {
        tls: Some(Arc::new(tls)),
        head_timeout: Duration::from_secs(15),
        ..DialerOptions::new(Class::Control.number())
    });
    let request = JoinRequest {
        secret: join.secret.clone(),
        credential: pending.credential.clone(),
        ticket_key: pending.ticket_key.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let reply =
        ControlClient::new(dialer, &join.api).join(&request).await.map_err(|error| explain(join, error))?;
    let credential = Credential {
        node: reply.node,
        name: reply.name,
        api: join.api.clone(),
        fingerprint: join.fingerprint,
        credential: pending.credential,
        ticket_key: pending.ticket_key,
        front_door: reply.front_door.trim_end_matches('/').to_owned(),
        joined_with: pending.joined_with,
    };
    let repeat = "control has accepted this host; make room and repeat the same command";
    credential.store(state).context(repeat)?;
    Pending::remove(state).context(repeat)?;
    Ok(credential)
}

/// Whose fault it is, and what to do.
fn explain(join: &JoinString, error: ControlError) -> Failure {
    let api = &join.api;
    match &error {
        ControlError::Refused { status, .. } if status.is_client_error() && status.as_u16() != 429 => {
            Failure::membership(anyhow!(error).context(
                "control does not accept this join string; have the operator make another (`ctl node add NAME`)",
            ))
        }
        ControlError::Link(LinkError::Tls { .. }) => Failure::membership(anyhow!(error).context(format!(
            "what answers at {api} is not the control that made this join string"
        ))),
        ControlError::Link(link) if link.retry_helps() => Failure::from(anyhow!(error).context(format!(
            "cannot reach control at {api}; check that this port is open from here, then repeat the same command"
        ))),
        _ => Failure::from(anyhow!(error).context("repeat the same command later")),
    }
}

/// Writes the configuration if there is none.
fn write_configuration(options: &JoinOptions) -> Result<(), Failure> {
    let path = options.config.clone().unwrap_or_else(|| options.state.join(config::FILE_NAME));
    if path.try_exists().with_context(|| format!("cannot look for {}", path.display()))? {
        announce(format_args!("configuration: {} (kept as it is)", path.display()));
        return Ok(());
    }
    let tree = match &options.tree {
        None => None,
        Some(tree) => {
            Some(std::path::absolute(tree).with_context(|| format!("cannot resolve {}", tree.display()))?)
        }
    };
    let template = Template {
        listen: options.listen.clone(),
        public_url: options.public_url.clone(),
        tree,
        donated_rate: options.donated_rate.clone(),
    };
    crate::durable::write(&path, template.render().as_bytes(), 0o644)
        .with_context(|| format!("cannot write {}", path.display()))?;
    announce(format_args!("configuration: {}", path.display()));
    Ok(())
}
