//! As much of ELF as the builds need: sections of kernel modules, and the proof that a program is static.

use anyhow::{Context, Result, bail};

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

/// A 64-bit little-endian ELF file.
pub(crate) struct Elf<'a>(&'a [u8]);

impl<'a> Elf<'a> {
    /// Checks the identification only.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self> {
        if !bytes.starts_with(b"\x7fELF\x02\x01") {
            bail!("not a 64-bit little-endian ELF file");
        }
        Ok(Self(bytes))
    }

    /// The content of the section called `name`.
    pub(crate) fn section(&self, name: &str) -> Result<Option<&'a [u8]>> {
        self.find(name)?
            .map(|(header, _)| self.body(header))
            .transpose()
    }

    /// Where in the file the name of the section called `name` stands.
    pub(crate) fn position_of_name(&self, name: &str) -> Result<Option<usize>> {
        Ok(self.find(name)?.map(|(_, position)| position))
    }

    /// The positions of a section's header and of its name.
    fn find(&self, name: &str) -> Result<Option<(usize, usize)>> {
        let table = self.u64(0x28)?;
        let size = usize::from(self.u16(0x3a)?);
        let count = usize::from(self.u16(0x3c)?);
        let names_index = usize::from(self.u16(0x3e)?);
        let header = |index: usize| table + index * size;
        let names = self.body(header(names_index))?;
        let names_at = self.u64(header(names_index) + 0x18)?;
        for index in 0..count {
            let start = self.u32(header(index))? as usize;
            let found = names
                .get(start..)
                .and_then(|rest| rest.split(|byte| *byte == 0).next());
            if found == Some(name.as_bytes()) {
                return Ok(Some((header(index), names_at + start)));
            }
        }
        Ok(None)
    }

    /// Whether the program needs neither an interpreter nor a shared library. A static
    /// position-independent program has a dynamic segment (for its own relocations), yet no
    /// `DT_NEEDED` in it.
    pub(crate) fn is_static(&self) -> Result<bool> {
        const DT_NEEDED: usize = 1;
        let table = self.u64(0x20)?;
        let size = usize::from(self.u16(0x36)?);
        let count = usize::from(self.u16(0x38)?);
        for index in 0..count {
            let at = table + index * size;
            match self.u32(at)? {
                PT_INTERP => return Ok(false),
                PT_DYNAMIC => {
                    let start = self.u64(at + 8)?;
                    let length = self.u64(at + 0x20)?;
                    for entry in (start..start + length).step_by(16) {
                        match self.u64(entry)? {
                            0 => break,
                            DT_NEEDED => return Ok(false),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(true)
    }

    fn body(&self, header: usize) -> Result<&'a [u8]> {
        let start = self.u64(header + 0x18)?;
        let length = self.u64(header + 0x20)?;
        start
            .checked_add(length)
            .and_then(|end| self.0.get(start..end))
            .context("a section lies outside the ELF file")
    }

    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        at.checked_add(N)
            .and_then(|end| self.0.get(at..end))
            .and_then(|slice| slice.try_into().ok())
            .context("the ELF file is cut short")
    }

    fn u16(&self, at: usize) -> Result<u16> {
        Ok(u16::from_le_bytes(self.bytes(at)?))
    }

    fn u32(&self, at: usize) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes(at)?))
    }

    fn u64(&self, at: usize) -> Result<usize> {
        Ok(usize::try_from(u64::from_le_bytes(self.bytes(at)?))?)
    }
}
