//! Writes first-boot configuration as cloud-init's NoCloud source finds it: a FAT disk labelled CIDATA.

use std::io::{self, Cursor, Write};
use std::path::Path;

use serde_json::json;

use crate::folder::replace_file;
use crate::spec::{Seed, SeedFile};

/// Holds the largest user data and keys that a spec may have, with room to spare.
const SEED_BYTES: usize = 1 << 20;
/// Any fixed number: the label is what finds the disk, and equal seeds should be equal bytes.
const VOLUME_ID: u32 = 0x0b11_a4d0;

/// Writes the seed disk to `path`.
pub(crate) fn write(path: &Path, seed: &Seed) -> io::Result<()> {
    replace_file(path, &disk(seed)?)
}

fn disk(seed: &Seed) -> io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; SEED_BYTES]);
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"CIDATA     ").volume_id(VOLUME_ID);
    fatfs::format_volume(&mut disk, options)?;
    {
        let volume = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new())?;
        let root = volume.root_dir();
        root.create_file("meta-data")?.write_all(meta_data(seed).as_bytes())?;
        // NoCloud takes a disk without this file for no seed at all.
        let user_data = seed.user_data.as_deref().unwrap_or("#cloud-config\n{}\n");
        root.create_file("user-data")?.write_all(user_data.as_bytes())?;
        if !seed.files.is_empty() {
            root.create_file("vendor-data")?.write_all(vendor_data(seed).as_bytes())?;
        }
    }
    Ok(disk.into_inner())
}

/// Keys go here and not into the user data, which belongs to the user and may be of any type. JSON is YAML; a field to
/// a line lets a guest without a YAML parser find its name.
fn meta_data(seed: &Seed) -> String {
    let fields = [
        ("instance-id", json!(seed.instance_id)),
        ("local-hostname", json!(seed.hostname)),
        ("public-keys", json!(seed.ssh_keys)),
    ];
    fields.map(|(name, value)| format!("{name}: {value}\n")).concat()
}

/// Files go here for the same reason. cloud-init heeds both, and the user data where they disagree.
fn vendor_data(seed: &Seed) -> String {
    let file = |file: &SeedFile| json!({ "path": file.path, "encoding": "b64", "content": file.content_base64 });
    let files: Vec<_> = seed.files.iter().map(file).collect();
    format!("#cloud-config\n{}\n", json!({ "write_files": files }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;

    use super::*;

    #[test]
    fn the_largest_seed_fits_and_reads_back() {
        let seed = Seed {
            hostname: "web".into(),
            user_data: Some("#!/bin/sh\n".repeat(crate::spec::USER_DATA_BYTES_MAX / 10)),
            ssh_keys: vec!["ssh-ed25519 AAAA \"me\"".into(), "k".repeat(crate::spec::SSH_KEYS_BYTES_MAX - 21)],
            instance_id: "i-1".into(),
            files: vec![
                SeedFile { path: "/etc/app.conf".into(), content_base64: "bGV2ZWwgPSAz".into() },
                SeedFile {
                    path: "/etc/large".into(),
                    content_base64: "A".repeat(crate::spec::SEED_FILES_BYTES_MAX - 35),
                },
            ],
        };
        let bytes = disk(&seed).unwrap();
        let volume = fatfs::FileSystem::new(Cursor::new(bytes), fatfs::FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label(), "CIDATA");
        let read = |name: &str| {
            let mut text = String::new();
            volume.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(Some(read("user-data")), seed.user_data);
        let meta = read("meta-data");
        assert!(meta.starts_with("instance-id: \"i-1\"\nlocal-hostname: \"web\"\n"), "{meta:.80}");
        assert!(meta.contains(r#"ssh-ed25519 AAAA \"me\""#));
        let vendor = read("vendor-data");
        let json: serde_json::Value = serde_json::from_str(vendor.strip_prefix("#cloud-config\n").unwrap()).unwrap();
        let first = json!({ "path": "/etc/app.conf", "encoding": "b64", "content": "bGV2ZWwgPSAz" });
        assert_eq!(json["write_files"][0], first);
        assert_eq!(json["write_files"].as_array().unwrap().len(), 2);
    }
}
