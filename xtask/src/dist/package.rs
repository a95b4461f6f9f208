//! What is in the package: a tree as it will lie on the host, and the package's own data beside it.

use crate::{process, workspace_root};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who answers for the package.
const MAINTAINER: &str = "The Blixard developers <packages@blixard.invalid>";
/// What vms need. The rest of the program is in one file.
const DEPENDS: &str = "qemu-system-x86, qemu-utils";
/// The same for every package of this project: x86-64 is all that it runs on.
const ARCHITECTURE: &str = "amd64";
const DESCRIPTION: &str = "virtual machines on a cluster of Linux hosts anywhere
 Blixard makes one cluster for virtual machines out of Linux hosts anywhere: in
 a rack, at home behind a NAT, in several clouds. It is one program on each
 host; there is no VPN, no shared storage, no image registry and no control
 plane to host.";
/// Where shells look for completions.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/blixard"),
    ("zsh", "usr/share/zsh/vendor-completions/_blixard"),
    ("fish", "usr/share/fish/vendor_completions.d/blixard.fish"),
];
/// The file that its user edits, and that upgrades keep.
pub(super) const CONFIGURATION: &str = "etc/blixard/blixard.toml";

/// Builds the package of a program in a folder, packed by these options of `dpkg-deb`, and gives its path.
pub(super) fn build(binary: &Path, dir: &Path, packing: [&str; 2]) -> Result<PathBuf> {
    let version = version()?;
    let tree = Tree { root: dir.join("tree") };
    let written_at = written_at()?;
    lay_out(&tree, binary, &version, &written_at)?;
    control(&tree, &version)?;
    let package = dir.join(format!("blixard_{version}_{ARCHITECTURE}.deb"));
    let mut command = Command::new("dpkg-deb");
    // The same content at the same commit gives the same package, whoever builds it.
    command
        .args(packing)
        .args(["--root-owner-group", "--build"])
        .arg(&tree.root)
        .arg(&package)
        .env("SOURCE_DATE_EPOCH", written_at);
    process::output(&mut command)?;
    Ok(package)
}

fn version() -> Result<String> {
    let manifest: toml::Table = fs::read_to_string(workspace_root().join("Cargo.toml"))?.parse()?;
    let version = manifest.get("workspace").and_then(|it| it.get("package")).and_then(|it| it.get("version"));
    Ok(version.and_then(toml::Value::as_str).context("Cargo.toml names no version")?.to_owned())
}

/// Seconds since 1970 at the last commit, or what the builder says.
fn written_at() -> Result<String> {
    if let Ok(seconds) = std::env::var("SOURCE_DATE_EPOCH") {
        return Ok(seconds);
    }
    let mut command = Command::new("git");
    command.args(["log", "-1", "--format=%ct"]).current_dir(workspace_root());
    let text = process::text(&mut command).context("learn when this was written, or set SOURCE_DATE_EPOCH")?;
    Ok(text.trim().to_owned())
}

/// The tree of files as it will lie on the host.
struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Writes a file with a mode, and makes its folders.
    fn put(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let target = self.root.join(path);
        let write = || -> std::io::Result<()> {
            let mut dir = self.root.clone();
            fs::create_dir_all(target.parent().unwrap_or(&dir))?;
            // Whatever the umask of the builder is, folders of the system are open to all.
            for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
                dir.push(part);
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
            }
            fs::write(&target, content)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))
        };
        write().with_context(|| format!("write {}", target.display()))
    }

    /// The same, packed, without the time and name that would make each build another.
    fn put_packed(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        self.put(path, content, 0o644)?;
        process::check(Command::new("gzip").args(["-9n"]).arg(self.root.join(path)))
    }
}

fn lay_out(tree: &Tree, binary: &Path, version: &str, written_at: &str) -> Result<()> {
    let project = workspace_root();
    let read = |path: &str| fs::read(project.join(path)).with_context(|| format!("read {path}"));
    tree.put("usr/bin/blixard", fs::read(binary)?, 0o755)?;
    let program = tree.root.join("usr/bin/blixard");
    // What helps a debugger is most of the file, and nobody debugs with it on a host.
    process::check(Command::new("strip").args(["--strip-unneeded", "--remove-section=.comment"]).arg(&program))?;
    tree.put("usr/lib/systemd/system/blixard.service", read("packaging/blixard.service")?, 0o644)?;
    // It may hold a ticket, which is a secret.
    tree.put(CONFIGURATION, read("packaging/blixard.toml")?, 0o600)?;
    for (shell, path) in COMPLETIONS {
        tree.put(path, process::output(Command::new(&program).args(["completions", shell]))?, 0o644)?;
    }
    let pages = tempfile::tempdir()?;
    process::output(Command::new(&program).arg("man").arg(pages.path()))?;
    for page in fs::read_dir(pages.path())? {
        let page = page?;
        let name = page.file_name();
        let name = name.to_str().context("a page has a name of plain text")?;
        tree.put_packed(&format!("usr/share/man/man1/{name}"), fs::read(page.path())?)?;
    }
    let licences = [read("LICENSE-MIT")?, read("packaging/deb/copyright")?];
    let copyright = String::from_utf8(licences[1].clone())?.replace("@MIT@", &indented(&licences[0])?);
    tree.put("usr/share/doc/blixard/copyright", copyright, 0o644)?;
    tree.put("usr/share/doc/blixard/README.md", read("README.md")?, 0o644)?;
    tree.put_packed("usr/share/doc/blixard/CHANGELOG.md", read("CHANGELOG.md")?)?;
    let date = process::text(Command::new("date").args(["-u", "-R", "-d", &format!("@{written_at}")]))?;
    let changes = format!(
        "blixard ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md says what is new.\n\n -- {MAINTAINER}  {}\n",
        date.trim()
    );
    tree.put_packed("usr/share/doc/blixard/changelog", changes)
}

/// A licence as a field of the copyright file: each line begins with a blank, and an empty one with a dot.
fn indented(text: &[u8]) -> Result<String> {
    let line = |line: &str| if line.trim().is_empty() { " .".to_owned() } else { format!(" {line}") };
    Ok(std::str::from_utf8(text)?.trim().lines().map(line).collect::<Vec<_>>().join("\n"))
}

/// The package's own data: what it is, what it needs, its scripts, and sums of its files.
fn control(tree: &Tree, version: &str) -> Result<()> {
    let mut sums = String::new();
    let mut bytes = 0;
    for path in files(&tree.root)? {
        let name = path.strip_prefix(&tree.root)?.display().to_string();
        bytes += fs::metadata(&path)?.len();
        let sum = process::text(Command::new("md5sum").arg(&path))?;
        let sum = sum.split_whitespace().next().context("md5sum says nothing")?;
        sums.push_str(&format!("{sum}  {name}\n"));
    }
    let libc = libc_version(&tree.root.join("usr/bin/blixard"))?;
    let text = format!(
        "Package: blixard\nVersion: {version}\nArchitecture: {ARCHITECTURE}\nMaintainer: {MAINTAINER}\nInstalled-Size: {}\n\
         Depends: libc6 (>= {libc}), libgcc-s1, {DEPENDS}\nSection: admin\nPriority: optional\nDescription: {DESCRIPTION}\n",
        bytes.div_ceil(1024)
    );
    tree.put("DEBIAN/control", text, 0o644)?;
    tree.put("DEBIAN/md5sums", sums, 0o644)?;
    tree.put("DEBIAN/conffiles", format!("/{CONFIGURATION}\n"), 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        tree.put(&format!("DEBIAN/{script}"), fs::read(workspace_root().join("packaging/deb").join(script))?, 0o755)?;
    }
    Ok(())
}

/// All files below a folder, in order.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

/// The oldest C library that the program runs with: the newest version among those of the symbols that it asks for.
fn libc_version(program: &Path) -> Result<String> {
    let symbols = process::text(Command::new("objdump").arg("-T").arg(program))?;
    newest_libc(&symbols).context("the program asks for no symbol of the C library")
}

fn newest_libc(symbols: &str) -> Option<String> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let text = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()
    });
    let newest = versions.max()?;
    Some(newest.iter().map(ToString::to_string).collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_symbol_decides_the_library() {
        let symbols =
            "0 DF *UND* 0 (GLIBC_2.2.5) free\n0 DF *UND* 0 (GLIBC_2.34) pthread_create\n0 (GLIBC_2.9) pipe2\n";
        assert_eq!(newest_libc(symbols).as_deref(), Some("2.34"));
        assert_eq!(newest_libc("0 DF .text main"), None);
    }
}
