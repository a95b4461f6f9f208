//! What is held of a package before anybody installs it.

use super::package::CONFIGURATION;
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What has to be in the package, with mode and owner as `dpkg-deb --contents` shows them.
const CONTENTS: &[(&str, &str)] = &[
    ("-rwxr-xr-x root/root", "./usr/bin/blixard"),
    ("-rw-r--r-- root/root", "./usr/lib/systemd/system/blixard.service"),
    ("-rw------- root/root", "./etc/blixard/blixard.toml"),
    ("-rw-r--r-- root/root", "./usr/share/man/man1/blixard.1.gz"),
    ("-rw-r--r-- root/root", "./usr/share/man/man1/blixard-vm-create.1.gz"),
    ("-rw-r--r-- root/root", "./usr/share/bash-completion/completions/blixard"),
    ("-rw-r--r-- root/root", "./usr/share/zsh/vendor-completions/_blixard"),
    ("-rw-r--r-- root/root", "./usr/share/fish/vendor_completions.d/blixard.fish"),
    ("-rw-r--r-- root/root", "./usr/share/doc/blixard/copyright"),
    ("-rw-r--r-- root/root", "./usr/share/doc/blixard/changelog.gz"),
];
/// How exposed the service may be by systemd's own reckoning, in tenths, where 100 is not confined at all. It is root with
/// devices and the network, which alone is most of it; this is to notice when more is opened.
const EXPOSURE_TENTHS_MAX: u32 = 42;
/// The first version of systemd that knows `DelegateSubgroup=`; older ones go on without it.
const SUBGROUPS_SINCE: u32 = 254;

/// Holds the list of files.
pub(super) fn contents(package: &Path) -> Result<()> {
    let listed = process::text(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    for (mode, path) in CONTENTS {
        let line = listed.lines().find(|line| line.ends_with(&format!(" {path}")));
        let line = line.with_context(|| format!("the package has no {path}:\n{listed}"))?;
        ensure!(line.starts_with(mode), "{path} is to be {mode}: {line}");
    }
    ensure!(listed.lines().all(|line| line.contains(" root/root ")), "not all is root's:\n{listed}");
    let info = process::text(Command::new("dpkg-deb").arg("--info").arg(package))?;
    for field in ["Package: blixard", "Architecture: amd64", "libc6 (>= ", "qemu-system-x86"] {
        ensure!(info.contains(field), "the package does not say `{field}`:\n{info}");
    }
    println!("dist: {} files, as they are to be", listed.lines().filter(|line| line.starts_with('-')).count());
    Ok(())
}

/// Holds the scripts of the package against `shellcheck`.
pub(super) fn scripts(dir: &Path) -> Result<()> {
    let scripts = ["postinst", "prerm", "postrm"].map(|name| dir.join(name));
    process::check(Command::new("shellcheck").args(scripts))?;
    println!("dist: shellcheck has nothing to say about the package's scripts");
    Ok(())
}

/// Installs the package below a folder, upgrades it, removes it and purges it, as dpkg does on a host.
pub(super) fn life(package: &Path, root: &Path) -> Result<()> {
    for folder in ["info", "updates"] {
        fs::create_dir_all(root.join("var/lib/dpkg").join(folder))?;
    }
    fs::write(root.join("var/lib/dpkg/status"), "")?;
    let dpkg = |arguments: &[&OsStr]| -> Result<String> {
        // Only root can give files to root; this plays it where it has to.
        let mut command = match nix::unistd::geteuid().is_root() {
            true => Command::new("dpkg"),
            false => Command::new("fakeroot"),
        };
        if command.get_program() == "fakeroot" {
            command.args(["--", "dpkg"]);
        }
        // Nothing else is below this folder: no shell for its scripts, and none of the packages that this one needs.
        command.args(["--force-not-root", "--force-script-chrootless", "--force-depends", "--log=/dev/null"]);
        command.args(["--force-confold"]).arg(format!("--root={}", root.display())).args(arguments);
        process::text(&mut command)
    };
    let (install, name) = ([OsStr::new("--install"), package.as_os_str()], OsStr::new("blixard"));
    let is_there = |path: &str| root.join(path).exists();
    let said = dpkg(&install)?;
    ensure!(said.contains("systemctl enable --now blixard"), "a first installation says how to begin: {said}");
    let program = root.join("usr/bin/blixard");
    let shown = process::text(Command::new(&program).arg("--version"))?;
    ensure!(shown.starts_with("blixard "), "the installed program does not run: {shown}");
    let configuration = root.join(CONFIGURATION);
    let mut show = Command::new(&program);
    show.args(["config", "show", "-o", "name", "--id", "1", "--config"]).arg(&configuration);
    process::text(&mut show).context("read the configuration that the package brings")?;

    fs::write(&configuration, "id = 7\n")?;
    fs::create_dir_all(root.join("var/lib/blixard/raft"))?;
    let said = dpkg(&install)?;
    ensure!(fs::read_to_string(&configuration)? == "id = 7\n", "an upgrade has to keep the user's configuration");
    ensure!(!said.contains("enable --now"), "an upgrade tells nobody how to begin: {said}");
    dpkg(&[OsStr::new("--remove"), name])?;
    ensure!(!is_there("usr/bin/blixard") && is_there(CONFIGURATION), "a removal takes the program and no settings");
    ensure!(is_there("var/lib/blixard/raft"), "a removal keeps the node's data");
    dpkg(&[OsStr::new("--purge"), name])?;
    for path in ["etc/blixard", "var/lib/blixard", "usr/lib/systemd/system/blixard.service"] {
        ensure!(!is_there(path), "a purge leaves {path}");
    }
    fs::remove_dir_all(root)?;
    println!("dist: installed, upgraded, removed and purged below a folder of its own");
    Ok(())
}

/// Has systemd read the unit, and say how exposed the service is.
pub(super) fn unit(unit: &Path, binary: &Path, dir: &Path) -> Result<()> {
    if process::find("systemd-analyze").is_none() {
        println!("dist: NOT CHECKED: this distribution has no systemd-analyze, so nobody has read the unit");
        return Ok(());
    }
    let text = fs::read_to_string(unit)?;
    // The program is not installed here, and a unit without its program is refused.
    let text = text.replace("ExecStart=/usr/bin/blixard", &format!("ExecStart={}", binary.display()));
    let version = process::text(Command::new("systemd-analyze").arg("--version"))?;
    let version = version.split_whitespace().nth(1).and_then(|word| word.split('.').next()?.parse::<u32>().ok());
    // An older systemd ignores the line, as it should, but calls the unit wrong for it.
    let is_known = |line: &&str| version >= Some(SUBGROUPS_SINCE) || !line.starts_with("DelegateSubgroup=");
    let copy = dir.join("blixard.service");
    fs::write(&copy, text.lines().filter(is_known).map(|line| format!("{line}\n")).collect::<String>())?;
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&copy)
        .stdin(Stdio::null())
        .output()
        .context("start systemd-analyze")?;
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    let complaints: Vec<&str> = said.lines().filter(|line| line.contains("blixard")).collect();
    ensure!(complaints.is_empty(), "systemd does not like the unit:\n{}", complaints.join("\n"));
    ensure!(verify.status.success(), "systemd-analyze verify ended with {}:\n{said}", verify.status);
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--no-pager", "--offline=true"]).arg(&copy);
    let shown = process::text(&mut security)?;
    let verdict = shown.lines().find(|line| line.contains("Overall exposure level")).context("no verdict")?;
    let tenths = exposure_tenths(verdict).with_context(|| format!("read {verdict:?}"))?;
    println!("dist: systemd reads the unit; exposure {}.{} of 10", tenths / 10, tenths % 10);
    ensure!(tenths <= EXPOSURE_TENTHS_MAX, "the service is more exposed than it was:\n{shown}");
    Ok(())
}

/// The number in `→ Overall exposure level for blixard.service: 5.1 MEDIUM`.
fn exposure_tenths(verdict: &str) -> Option<u32> {
    let number = verdict.rsplit(": ").next()?.split_whitespace().next()?;
    let (whole, tenth) = number.split_once('.')?;
    Some(whole.parse::<u32>().ok()? * 10 + tenth.parse::<u32>().ok()?)
}

/// Debian's own checker, where it is installed: it is large, and only packagers need it.
pub(super) fn lint(package: &Path) -> Result<()> {
    if process::find("lintian").is_none() {
        println!("dist: lintian is not installed, so its rules are not checked");
        return Ok(());
    }
    let output = Command::new("lintian").args(["--fail-on", "error"]).arg(package).output().context("start lintian")?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        bail!("lintian finds errors");
    }
    println!("dist: lintian finds no error");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_read() {
        assert_eq!(exposure_tenths("→ Overall exposure level for blixard.service: 5.1 MEDIUM :-|"), Some(51));
        assert_eq!(exposure_tenths("→ Overall exposure level for blixard.service: 10.0 DANGEROUS"), Some(100));
        assert_eq!(exposure_tenths("nothing"), None);
    }
}
