//! Kernel files: which format one has, and the plain form that boots fastest.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::run::need_program;
use crate::workspace::Arch;

/// A kernel as QEMU gets it.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// "vmlinux", "bzimage" or "image".
    pub(super) format: &'static str,
    /// The file's content.
    pub(super) content: Vec<u8>,
    /// The release that the kernel reports, where its header tells.
    pub(super) release: Option<String>,
}

/// Looks at a kernel file and takes the plain form out of it where there is one: vmlinux out of an
/// x86 bzImage (when its payload is an ELF file with the PVH entry that QEMU boots), Image out of
/// a compressed or EFI arm64 kernel.
pub(super) fn open(arch: Arch, file: &[u8]) -> Result<Kernel> {
    match arch {
        Arch::X86_64 if file.starts_with(b"\x7fELF") => Ok(Kernel {
            format: "vmlinux",
            content: file.to_vec(),
            release: None,
        }),
        Arch::X86_64 if file.get(0x202..0x206) == Some(b"HdrS") => {
            let release = bzimage_release(file);
            match bzimage_payload(file).and_then(decompress) {
                Ok(content) if has_pvh_note(&content) => Ok(Kernel {
                    format: "vmlinux",
                    content,
                    release,
                }),
                _ => Ok(Kernel {
                    format: "bzimage",
                    content: file.to_vec(),
                    release,
                }),
            }
        }
        Arch::Aarch64 => {
            let content = if file.get(4..8) == Some(b"zimg") {
                decompress(zboot_payload(file)?)?
            } else if file.starts_with(&[0x1f, 0x8b]) {
                decompress(file)?
            } else {
                file.to_vec()
            };
            if content.get(0x38..0x3c) != Some(b"ARM\x64") {
                bail!("not a 64-bit ARM kernel image");
            }
            Ok(Kernel {
                format: "image",
                content,
                release: None,
            })
        }
        Arch::X86_64 => bail!("not an x86-64 kernel: neither bzImage nor vmlinux"),
    }
}

/// Whether QEMU can boot the ELF file directly: it carries the note `XEN_ELFNOTE_PHYS32_ENTRY`
/// (owner "Xen", type 18).
fn has_pvh_note(vmlinux: &[u8]) -> bool {
    let note = b"\x12\0\0\0Xen\0";
    vmlinux.starts_with(b"\x7fELF") && vmlinux.windows(note.len()).any(|window| window == note)
}

/// The compressed kernel inside a bzImage (`payload_offset` and `payload_length` of the boot
/// protocol, 2.08 and later).
fn bzimage_payload(file: &[u8]) -> Result<&[u8]> {
    let sectors = match file[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (sectors + 1) * 512 + u32_at(file, 0x248)?;
    let payload = file
        .get(start..start + u32_at(file, 0x24c)?)
        .context("the bzImage is cut short")?;
    // All formats but gzip carry the plain size in four more bytes, which are not theirs.
    let extra = if payload.starts_with(&[0x1f, 0x8b]) {
        0
    } else {
        4
    };
    Ok(&payload[..payload.len().saturating_sub(extra)])
}

/// The release string that a bzImage's header points at ("6.1.0-56-cloud-amd64 (…)").
fn bzimage_release(file: &[u8]) -> Option<String> {
    let at = usize::from(u16::from_le_bytes(file.get(0x20e..0x210)?.try_into().ok()?));
    let text = file.get(at + 0x200..)?;
    let text = &text[..text.iter().position(|byte| *byte == 0 || *byte == b' ')?];
    String::from_utf8(text.to_vec())
        .ok()
        .filter(|text| !text.is_empty())
}

/// The compressed kernel inside an EFI "zboot" image.
fn zboot_payload(file: &[u8]) -> Result<&[u8]> {
    let start = u32_at(file, 8)?;
    file.get(start..start + u32_at(file, 12)?)
        .context("the kernel image is cut short")
}

/// Decompresses by the host's tool for the format that the first bytes tell.
pub(super) fn decompress(bytes: &[u8]) -> Result<Vec<u8>> {
    let (tool, package) = match bytes {
        [0x1f, 0x8b, ..] => ("gzip", "gzip"),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", "lz4"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", "xz-utils"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", "zstd"),
        _ => bail!("unknown compression"),
    };
    let mut child = Command::new(need_program(tool, package)?)
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {tool}"))?;
    let mut input = child.stdin.take().context("a pipe to the tool")?;
    let output = thread::scope(|scope| {
        // The tool may stop reading early; its status tells whether that was an error.
        scope.spawn(move || drop(input.write_all(bytes)));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("{tool} ended with {}", output.status);
    }
    Ok(output.stdout)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize> {
    let four = bytes
        .get(at..at + 4)
        .context("the kernel file is cut short")?;
    Ok(u32::from_le_bytes(four.try_into()?) as usize)
}
