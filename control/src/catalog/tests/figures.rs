//! Figures of large catalogues, printed and not judged.

use super::*;

/// Figures, not a verdict: `cargo test … -- --ignored --nocapture figures`. `FRESHET_TEST_FILES` sets how many.
#[test]
#[ignore = "prints figures of a large generated tree; takes minutes"]
fn figures_of_a_large_tree() {
    let files: usize =
        std::env::var("FRESHET_TEST_FILES").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000);
    let place = Place::new();
    let name = |i: usize| {
        format!("pool/main/{:02x}/package-{}/package-{i}_1.{}-1_amd64.deb", i / 20 % 251, i / 20, i % 10)
    };
    for i in 0..files {
        place.put(&name(i), format!("content {i}").repeat(1 + i % 100));
    }
    // Old enough to be quiet.
    std::thread::sleep(Duration::from_millis(100));
    let opened = || {
        let catalog = Catalog::open(place.options()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(600);
        while !catalog.first_scan_done() {
            assert!(Instant::now() < deadline, "the scan did not end within 10 minutes");
            std::thread::sleep(Duration::from_millis(5));
        }
        catalog
    };
    let start = Instant::now();
    let catalog = opened();
    let scan = start.elapsed();
    println!("first scan: {files} files, {scan:.2?}, {:.0} files/s", files as f64 / scan.as_secs_f64());
    catalog.stop();
    drop(catalog);

    let start = Instant::now();
    let catalog = Catalog::open(place.options()).unwrap();
    let loaded = start.elapsed();
    assert_eq!(catalog.load().len(), files);
    catalog.stop();
    drop(catalog);
    let start = Instant::now();
    let catalog = opened();
    println!("restart: served after {loaded:.2?}, verified after {:.2?}", start.elapsed());
    assert_eq!(catalog.hashed_files(), 0);

    let mut worst = Duration::ZERO;
    for round in 0..5 {
        let content = format!("changed {round}");
        let start = Instant::now();
        place.put_by_rename(&name(7), &content);
        until("the change", || has(&catalog, &name(7), &content));
        worst = worst.max(start.elapsed());
    }
    println!("a change appears within {worst:.2?} at {:?} of quiet", place.options().quiet);
    let snapshot = catalog.load().clone();
    let start = Instant::now();
    let rounds = 1_000_000;
    let mut hits = 0;
    for i in 0..rounds {
        hits += usize::from(snapshot.find(name((i * 7919) % files).as_bytes()).is_some());
    }
    println!("find: {:.0} ns with the path's formatting", start.elapsed().as_nanos() as f64 / rounds as f64);
    assert_eq!(hits, rounds);
    let start = Instant::now();
    let wire = catalog.manifest_since(None).encode().unwrap();
    println!("manifest: {} B/file, {:.2?}", wire.len() / files, start.elapsed());
    let size = fs::metadata(place.dir.path().join("catalog.redb")).unwrap().len();
    println!("database: {} B/file", size / files as u64);
    catalog.stop();
}

#[test]
#[ignore = "prints the memory of 2.2 million generated rows"]
fn figures_of_a_snapshot_in_memory() {
    let files = 2_200_000u32;
    let resident = || -> u64 {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = resident();
    let mut snapshot = Snapshot::empty(1);
    let start = Instant::now();
    for i in 1..=files {
        let text =
            format!("pool/main/{:02x}/package-{}/package-{i}_1.{}-1_amd64.deb", i / 20 % 251, i / 20, i % 10);
        let stamp = entry::Stamp {
            inode: u64::from(i),
            size: u64::from(i),
            mtime: 1,
            mtime_nanos: 0,
            ctime: 1,
            ctime_nanos: 0,
        };
        let sums = Checksums { blake3: blake3::hash(&i.to_le_bytes()).into(), sha256: [1; 32], md4: [2; 16] };
        let path = text.parse().unwrap();
        snapshot.insert(&FileEntry::new(freshet_api::FileId(i), path, &stamp, sums, false, 0));
    }
    snapshot.shrink();
    println!("{files} rows in {:.2?}", start.elapsed());
    println!("{} B/file resident, paths included", (resident() - before) / u64::from(files));
    println!("{} B per entry itself", size_of::<FileEntry<'_>>());
    let start = Instant::now();
    let rounds = 100;
    for round in 0..rounds {
        let mut next = snapshot.clone();
        let row = next.remove(freshet_api::FileId(round * 20_000 + 1)).unwrap();
        let stamp = entry::Stamp { inode: 0, size: 1, mtime: 1, mtime_nanos: 0, ctime: 1, ctime_nanos: 0 };
        let id = freshet_api::FileId(files + 1 + round);
        next.insert(&FileEntry::new(id, row.path.to_repo_path(), &stamp, row.checksums, false, 1));
        assert_eq!(next.len(), files as usize);
        snapshot = next;
    }
    println!("one change published in {:.0?}", start.elapsed() / rounds);
}
