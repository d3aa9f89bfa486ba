//! Which kernel modules a VM loads and in which order, read from the modules themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::kernel::decompress;
use crate::cache::files_below;
use crate::elf::Elf;

/// One module to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Its file name in the image, `<name>.ko`.
    pub(super) file: String,
    /// Its content, never compressed.
    pub(super) content: Vec<u8>,
}

/// The modules of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Modules {
    /// What is loaded at the start, dependencies first.
    pub(super) first: Vec<Module>,
    /// What is loaded when it is needed: its name, and its files that `first` does not have.
    pub(super) later: Vec<(String, Vec<Module>)>,
}

/// The modules for `wanted` (one a line, `#` comments) and all they need, dependencies first.
/// What the kernel has built in is left out; a name that it knows in neither form is an error
/// unless a `?` stands behind it. `modules` is the directory `lib/modules/<version>`.
pub(super) fn load_order(modules: &Path, wanted: &str) -> Result<Modules> {
    let files: BTreeMap<String, PathBuf> = files_below(&modules.join("kernel"))?
        .into_iter()
        .filter_map(|file| Some((module_name(file.file_name()?.to_str()?)?, file)))
        .collect();
    let builtin: BTreeSet<String> = fs::read_to_string(modules.join("modules.builtin"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| module_name(line.rsplit('/').next()?))
        .collect();
    let mut order = Order {
        files,
        builtin,
        done: BTreeSet::new(),
        list: Vec::new(),
    };
    let names = || {
        wanted
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
            .filter(|name| !name.is_empty())
    };
    for name in names().filter(|name| later(name).is_none()) {
        order.add_line(name)?;
    }
    let first = std::mem::take(&mut order.list);
    let mut found = Modules {
        first,
        later: Vec::new(),
    };
    let done = order.done.clone();
    for name in names().filter_map(later) {
        order.done.clone_from(&done);
        order.add_line(name)?;
        let files = std::mem::take(&mut order.list);
        if !files.is_empty() {
            let name = name.trim_end_matches('?').replace('-', "_");
            found.later.push((name, files));
        }
    }
    Ok(found)
}

/// The name behind `later`.
fn later(line: &str) -> Option<&str> {
    let (word, name) = line.split_once(char::is_whitespace)?;
    (word == "later").then(|| name.trim())
}

struct Order {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    done: BTreeSet<String>,
    list: Vec<Module>,
}

impl Order {
    fn add_line(&mut self, line: &str) -> Result<()> {
        match line.strip_suffix('?') {
            Some(optional) => self.add(optional, true),
            None => self.add(line, false),
        }
    }

    fn add(&mut self, name: &str, optional: bool) -> Result<()> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) || !self.done.insert(name.clone()) {
            return Ok(());
        }
        let Some(file) = self.files.get(&name) else {
            if optional {
                return Ok(());
            }
            bail!("the kernel has no module {name}, neither as a file nor built in");
        };
        let content = read(file)?;
        let info = info(&content).with_context(|| format!("cannot read {}", file.display()))?;
        for need in info.depends {
            self.add(&need, false)?;
        }
        for need in info.before {
            self.add(&need, true)?;
        }
        self.list.push(Module {
            file: format!("{name}.ko"),
            content: lightened(content)?,
        });
        Ok(())
    }
}

/// What a module says about its needs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Info {
    /// Modules whose symbols it uses.
    depends: Vec<String>,
    /// Modules that should be there first, when the kernel has them.
    before: Vec<String>,
}

fn info(module: &[u8]) -> Result<Info> {
    let section = Elf::new(module)?
        .section(".modinfo")?
        .context("no .modinfo section")?;
    let mut info = Info::default();
    for entry in section.split(|byte| *byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        if let Some(list) = entry.strip_prefix("depends=") {
            info.depends.extend(
                list.split(',')
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned),
            );
        } else if let Some(list) = entry.strip_prefix("softdep=pre:") {
            let names = list
                .split("post:")
                .next()
                .unwrap_or_default()
                .split_whitespace();
            info.before.extend(names.map(str::to_owned));
        }
    }
    Ok(info)
}

/// The module without what only costs time in a small VM: its signature, which nothing enforces there,
/// and its type information, which only tracers read. The section stays and loses its name.
fn lightened(mut module: Vec<u8>) -> Result<Vec<u8>> {
    // What include/linux/module_signature.h describes: the signature, twelve bytes about it of which
    // the last four are its length, and the mark.
    const MARK: &[u8] = b"~Module signature appended~\n";
    if let Some(signed) = module.strip_suffix(MARK)
        && let Some((rest, length)) = signed.split_last_chunk::<4>()
    {
        let signature = 8 + u32::from_be_bytes(*length) as usize;
        let plain = rest
            .len()
            .checked_sub(signature)
            .context("the module's signature is longer than the module")?;
        module.truncate(plain);
    }
    if let Some(position) = Elf::new(&module)?.position_of_name(".BTF")? {
        module[position..position + 4].copy_from_slice(b".off");
    }
    Ok(module)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    decompress(&bytes).with_context(|| format!("cannot decompress {}", file.display()))
}

/// "virtio_net" of "virtio-net.ko.xz".
fn module_name(file: &str) -> Option<String> {
    file.split_once(".ko")
        .map(|(name, _)| name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::{later, lightened, module_name};
    use crate::elf::Elf;

    #[test]
    fn names_are_those_of_the_kernel() {
        assert_eq!(
            module_name("vmw-vsock-x.ko.xz").as_deref(),
            Some("vmw_vsock_x")
        );
        assert_eq!(module_name("overlay.ko").as_deref(), Some("overlay"));
        assert_eq!(module_name("modules.order"), None);
    }

    #[test]
    fn what_comes_later_is_marked() {
        assert_eq!(later("later fuse?"), Some("fuse?"));
        assert_eq!(later("later\t veth"), Some("veth"));
        assert_eq!(later("laterfuse"), None);
        assert_eq!(later("later"), None);
    }

    /// An ELF file of two sections: `.BTF` with four bytes in it, and the names.
    fn module() -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let names = b"\0.BTF\0.names\0";
        file.extend(b"type");
        file.extend(names);
        let table = file.len() as u64;
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        for (at, value) in [(0x3a, 64_u16), (0x3c, 2), (0x3e, 1)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        for (name, start, length) in [(1_u32, 64_u64, 4_u64), (6, 68, names.len() as u64)] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&start.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&length.to_le_bytes());
            file.extend(header);
        }
        file
    }

    #[test]
    fn signature_and_type_information_go() {
        let plain = module();
        let mut signed = plain.clone();
        signed.extend(b"a signature");
        signed.extend([0; 8]);
        signed.extend(11_u32.to_be_bytes());
        signed.extend(b"~Module signature appended~\n");
        let light = lightened(signed).unwrap();
        assert_eq!(light.len(), plain.len());
        assert_eq!(
            Elf::new(&plain).unwrap().section(".BTF").unwrap(),
            Some(&b"type"[..])
        );
        assert_eq!(Elf::new(&light).unwrap().section(".BTF").unwrap(), None);
        assert_eq!(lightened(light.clone()).unwrap(), light);

        let mut lying = plain;
        lying.extend([0; 8]);
        lying.extend(u32::MAX.to_be_bytes());
        lying.extend(b"~Module signature appended~\n");
        assert!(lightened(lying).is_err());
    }
}
