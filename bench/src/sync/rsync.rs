//! rsync as mirrors use it: a daemon at the origin, every mirror for itself.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use freshet_testbed::{Process, Program, wait_until};

use super::report::Outcome;
use super::{Course, Meter, outcome};

/// All mirrors start at once; waits for the last.
pub(super) fn measure(course: &Course<'_>) -> Result<Outcome> {
    let origin = course.testbed.host("origin", &course.links.origin_link())?;
    let address = std::net::SocketAddr::new(origin.addr()?, origin.free_port()?);
    let configuration = course.directory.join("rsyncd.conf");
    let text = format!(
        "use chroot = no\nuid = 0\ngid = 0\nlock file = {0}/lock\nmax connections = 0\n[release]\npath = {1}\nread only = yes\n",
        course.directory.display(),
        course.content.root.display(),
    );
    fs::write(&configuration, text)?;
    let daemon =
        Program::new("rsync").args(["--daemon", "--no-detach", "--config"]).arg(&configuration).args([
            "--address".to_owned(),
            address.ip().to_string(),
            "--port".to_owned(),
            address.port().to_string(),
        ]);
    let daemon = origin.start("rsyncd", &daemon).context("`rsync` is needed (package rsync)")?;
    daemon.wait_for_port(&origin, address, READY)?;

    let mirrors = course.mirrors()?;
    let meter = Meter::start([origin].into_iter().chain(mirrors.iter().cloned()).collect())?;
    let begun = Instant::now();
    let tree = |number: usize| course.directory.join(format!("tree-{number}"));
    let clients: Vec<Process> = mirrors
        .iter()
        .enumerate()
        .map(|(number, host)| {
            let client = Program::new("rsync")
                .args(["-aH", "--delete-delay"])
                .arg(format!("rsync://{address}/release/"))
                .arg(tree(number));
            Ok(host.start("rsync", &client)?)
        })
        .collect::<Result<_>>()?;
    let mut finished = vec![None; clients.len()];
    wait_until("every rsync to end", course.timeout, &course.testbed.cancel(), || {
        for (client, finished) in clients.iter().zip(&mut finished) {
            if finished.is_none() && !client.is_running()? {
                *finished = Some(begun.elapsed().as_secs_f64());
            }
        }
        Ok(finished.iter().all(Option::is_some).then_some(()))
    })?;
    let passed = meter.read()?;
    for (number, client) in clients.iter().enumerate() {
        let status = client.wait(READY)?;
        if !status.success() {
            bail!("rsync of mirror {number} ended with {status}: {}", client.log()?.trim());
        }
        course.content.check(&tree(number)).with_context(|| format!("mirror {number}"))?;
    }
    // Each connection has processes of its own, which end with it and take their times along: there is no CPU figure.
    Ok(outcome(finished.into_iter().flatten().collect(), &passed, None, 0.0))
}

const READY: std::time::Duration = std::time::Duration::from_secs(30);
