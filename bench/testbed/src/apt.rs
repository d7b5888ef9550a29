//! A root for apt in one directory: it reads nothing of the system's and changes nothing there.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

/// Makes `root` apt's, with the one source `url`; `further` lines go into its configuration, `apt.conf`, which
/// `APT_CONFIG` is to name. Packages are to be downloaded into `downloads`.
///
/// # Errors
///
/// When the directory cannot be filled.
pub fn make_apt_root(root: &Path, url: &str, further: &[&str]) -> io::Result<()> {
    for directory in [
        "etc/apt/apt.conf.d",
        "etc/apt/preferences.d",
        "var/lib/dpkg",
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
        "var/log/apt",
        "downloads",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::write(root.join("var/lib/dpkg/status"), "")?;
    fs::write(root.join("etc/apt/sources.list"), format!("deb [trusted=yes] {url} stable main\n"))?;
    let mut configuration = format!(
        "Dir \"{root}\";\nDir::State::status \"{root}/var/lib/dpkg/status\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\nAPT::Sandbox::User \"\";\nAcquire::Languages \"none\";\n\
         Acquire::http::Proxy \"false\";\nAPT::Update::Post-Invoke-Success {{}};\n",
        root = root.display()
    );
    for line in further {
        // Writing into a string never fails.
        let _ = writeln!(configuration, "{line}");
    }
    fs::write(root.join("apt.conf"), configuration)
}
