//! The demo's tables: what the customer got, and what went over each volunteer's interfaces.

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use freshet_testbed::cluster::Cluster;
use freshet_testbed::{Backend, Testbed};
use serde_json::Value;

use super::customer::{Check, Download};

/// Prints both tables; `nodes` is what `ctl node list` says.
pub(super) fn print(
    testbed: &Testbed,
    cluster: &Cluster,
    downloads: &[Download],
    nodes: &Value,
) -> Result<()> {
    println!("\n{}", files(cluster, downloads));
    let served: u64 = downloads.iter().map(|download| download.size).sum();
    let by_volunteers: u64 = downloads
        .iter()
        .filter(|download| download.by_volunteer(cluster))
        .map(|download| download.size)
        .sum();
    let share = by_volunteers as f64 * 100.0 / served.max(1) as f64;
    println!("{} downloaded, {share:.1} % of the bytes from volunteers", size(served));

    println!("\n{}", interfaces(testbed, cluster, nodes)?);
    println!("bytes as on the wire, received / sent; {}", sources(nodes));
    if let Backend::Loopback { .. } = testbed.backend() {
        println!("on loopback all hosts share the one interface lo, so its total is the whole machine's");
    }
    Ok(())
}

fn files(cluster: &Cluster, downloads: &[Download]) -> Table {
    let mut table = table(&["file", "size", "served by", "rate", "SHA-256", "MD4"], &[1, 3]);
    for download in downloads {
        let from = match (&download.trouble, download.from) {
            (Some(trouble), _) => trouble.clone(),
            (None, Some(from)) => cluster.name_at(from).map_or_else(|| from.to_string(), str::to_owned),
            (None, None) => "unknown".to_owned(),
        };
        table.add_row([
            download.path.rsplit('/').next().unwrap_or_default().to_owned(),
            size(download.size),
            from,
            format!("{:.1} MB/s", download.bytes_per_sec / 1e6),
            verdict(download.sha256).to_owned(),
            verdict(download.md4).to_owned(),
        ]);
    }
    table
}

fn interfaces(testbed: &Testbed, cluster: &Cluster, nodes: &Value) -> Result<Table> {
    let mut table = table(
        &["volunteer", "interface", "delivery", "sync", "control", "other", "total", "kernel's count"],
        &[2, 3, 4, 5, 6, 7],
    );
    for volunteer in cluster.volunteers() {
        let node = nodes.as_array().into_iter().flatten().find(|node| node["name"] == volunteer.name());
        let counted = volunteer.host().interfaces()?;
        for interface in node.into_iter().flat_map(|node| node["interfaces"].as_array().into_iter().flatten())
        {
            let name = interface["name"].as_str().unwrap_or_default();
            let kernel = counted.iter().find(|counted| counted.name == name);
            // The harness's own reading, as a check on the programs': it is a moment later and so never less.
            let kernel = match (kernel, testbed.backend()) {
                (Some(kernel), Backend::Namespaces) => pair(kernel.rx_bytes, kernel.tx_bytes),
                _ => "-".to_owned(),
            };
            let class = |class: &str| {
                let count = |way: &str| interface[class][way]["bytes"].as_u64().unwrap_or_default();
                pair(count("in"), count("out"))
            };
            table.add_row([
                volunteer.name().to_owned(),
                name.to_owned(),
                class("delivery"),
                class("sync"),
                class("control"),
                class("other"),
                class("total"),
                kernel,
            ]);
        }
    }
    Ok(table)
}

/// Where the volunteers' counters come from, in a sentence.
fn sources(nodes: &Value) -> String {
    let mut sources: Vec<String> = nodes
        .as_array()
        .into_iter()
        .flatten()
        .map(|node| match (node["source"]["kind"].as_str(), node["source"]["why"].as_str()) {
            (Some("ebpf"), _) => "counted by eBPF on the interface".to_owned(),
            (Some("sockets"), Some(why)) => format!("counted by the kernel per socket, because {why}"),
            _ => "source unknown".to_owned(),
        })
        .collect();
    sources.sort();
    sources.dedup();
    sources.join("; ")
}

fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    for &column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn verdict(check: Check) -> &'static str {
    match check {
        Check::Matches => "matches",
        Check::Differs => "DIFFERS",
        Check::NotDone => "not done",
    }
}

fn pair(received: u64, sent: u64) -> String {
    format!("{} / {}", size(received), size(sent))
}

/// Bytes as a person reads them.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_their_digits() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(12_345), "12.3 kB");
        assert_eq!(size(123_456_789), "123.5 MB");
    }

    #[test]
    fn what_differs_is_said_loudly() {
        assert_eq!(verdict(Check::Differs), "DIFFERS");
        assert_ne!(verdict(Check::NotDone), verdict(Check::Matches));
    }
}
