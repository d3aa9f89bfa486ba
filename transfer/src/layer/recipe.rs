//! Recipes of layers: written while a layer is read, so that its archive can be made again from its
//! files.

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::path::Path;

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use vdkr_core::digest::Digest;
use vdkr_core::tar::recipe::{MAX_PATH, MAX_PIECE, RecipeError, Record};

use super::archive::{Kind, Member};
use super::name::{LayerPath, Meaning, meaning};
use super::printable;

/// Most bytes of an archive that its recipe repeats: headers of two million members. What lies
/// behind an archive's end and in sparse files counts too.
const MAX_REPEATED: u64 = 4 << 30;
/// Bytes that are read or written at once.
const PIECE: usize = 128 * 1024;

/// Writes the recipe of one layer. A recipe that cannot be written is none, and no reason to refuse the
/// layer.
#[derive(Debug)]
pub struct Recorder {
    out: GzEncoder<BufWriter<File>>,
    waiting: Vec<u8>,
    encoded: Vec<u8>,
    repeated: u64,
    failed: bool,
}

impl Recorder {
    /// Makes a file for a recipe.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Self::new(file))
    }

    /// Writes a recipe to an empty file.
    pub fn new(file: File) -> Self {
        // Headers shrink to a tenth at once; more would cost an emulated machine too much.
        let out = GzEncoder::new(BufWriter::with_capacity(PIECE, file), Compression::fast());
        Self {
            out,
            waiting: Vec::with_capacity(MAX_PIECE),
            encoded: Vec::new(),
            repeated: 0,
            failed: false,
        }
    }

    fn bytes(&mut self, mut bytes: &[u8]) {
        self.repeated += bytes.len() as u64;
        if self.failed || self.repeated > MAX_REPEATED {
            self.failed = true;
            return;
        }
        while !bytes.is_empty() {
            let room = (MAX_PIECE - self.waiting.len()).min(bytes.len());
            self.waiting.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            if self.waiting.len() == MAX_PIECE {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if !self.waiting.is_empty() {
            let record = Record::Bytes(std::mem::take(&mut self.waiting));
            self.record(&record);
            if let Record::Bytes(mut bytes) = record {
                bytes.clear();
                self.waiting = bytes;
            }
        }
    }

    fn file(&mut self, path: &[u8], length: u64) {
        self.flush();
        let path = path.to_vec();
        self.record(&Record::File { length, path });
    }

    fn record(&mut self, record: &Record) {
        self.encoded.clear();
        record.encode(&mut self.encoded);
        if self.failed || self.out.write_all(&self.encoded).is_err() {
            self.failed = true;
        }
    }

    /// Writes what is left; whether there is a recipe now, for an archive of `length` bytes.
    pub fn finish(mut self, length: u64) -> bool {
        self.flush();
        self.record(&Record::End { length });
        !self.failed && self.out.finish().is_ok_and(|mut file| file.flush().is_ok())
    }
}

/// A plain archive whose bytes are noted down as they are consumed, all but those of files.
pub(super) struct Recorded<'a, R> {
    inner: R,
    recorder: Option<&'a mut Recorder>,
    /// Bytes of a file that come next.
    skip: u64,
}

impl<'a, R: BufRead> Recorded<'a, R> {
    pub(super) fn new(inner: R, recorder: Option<&'a mut Recorder>) -> Self {
        let skip = 0;
        Self {
            inner,
            recorder,
            skip,
        }
    }

    /// Hears of the member whose data comes next.
    pub(super) fn member(&mut self, member: &Member) {
        let Some(recorder) = &mut self.recorder else {
            return;
        };
        // Segments of a sparse file do not stand in it as they stand in the archive.
        if member.kind != Kind::File || member.stored == 0 || member.sparse.is_some() {
            return;
        }
        let place = LayerPath::parse(&member.name).map(meaning);
        if let Ok(Ok(Meaning::Member(path))) = place
            && path.as_bytes().len() <= MAX_PATH
        {
            recorder.file(path.as_bytes(), member.stored);
            self.skip = member.stored;
        }
    }
}

impl<R: BufRead> Read for Recorded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

impl<R: BufRead> BufRead for Recorded<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let Some(recorder) = &mut self.recorder {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(amount);
            self.skip -= skipped as u64;
            if skipped < amount {
                // What is about to be consumed is at hand; nothing is read here.
                match self.inner.fill_buf() {
                    Ok(bytes) => recorder.bytes(&bytes[skipped..amount]),
                    Err(_) => recorder.failed = true,
                }
            }
        }
        self.inner.consume(amount);
    }
}

/// A recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is damaged.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// It cannot be read.
    #[error("the recipe cannot be read: {0}")]
    Io(io::Error),
}

/// The length of the archive that a recipe is for.
pub fn plain_length(recipe: &Path) -> Result<u64, ReadError> {
    let mut records = Records::open(recipe)?;
    loop {
        if let Record::End { length } = records.next_record()? {
            return Ok(length);
        }
    }
}

/// The records of a recipe, one after the other.
#[derive(Debug)]
pub struct Records {
    input: GzDecoder<io::BufReader<File>>,
    bytes: Vec<u8>,
    at: usize,
}

impl Records {
    /// Opens a recipe.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(ReadError::Io)?;
        Ok(Self {
            input: GzDecoder::new(io::BufReader::new(file)),
            bytes: Vec::new(),
            at: 0,
        })
    }

    /// The next record; an error at the end of the file.
    pub fn next_record(&mut self) -> Result<Record, ReadError> {
        loop {
            if let Some((record, length)) = Record::decode(&self.bytes[self.at..])? {
                self.at += length;
                return Ok(record);
            }
            self.bytes.drain(..self.at);
            self.at = 0;
            let before = self.bytes.len();
            // A record is never longer than this, so the buffer stays short.
            let mut more = (&mut self.input).take(MAX_PIECE as u64);
            more.read_to_end(&mut self.bytes).map_err(ReadError::Io)?;
            if self.bytes.len() == before {
                return Err(RecipeError::Truncated.into());
            }
        }
    }
}

/// Why a layer's archive cannot be made again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The recipe cannot be used.
    #[error(transparent)]
    Recipe(#[from] ReadError),
    /// A file of the layer is not there, or shorter than it was.
    #[error("its file {name} cannot be read: {source}")]
    File {
        /// Path in the layer, made printable.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// What came out is not what was unpacked: the archive had a file twice, or the layer changed.
    #[error("its archive comes out as {got}")]
    Digest {
        /// What came out.
        got: Digest,
    },
    /// The receiver is gone.
    #[error("cancelled")]
    Cancelled,
}

/// A layer's archive, made again from its files. Whether it is what it was, its digest tells: whoever
/// reads it has to look.
pub struct Restored<O, F> {
    records: Records,
    open: O,
    part: Part<F>,
}

impl<O, F> std::fmt::Debug for Restored<O, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restored").finish_non_exhaustive()
    }
}

/// What comes next.
enum Part<F> {
    Bytes { bytes: Vec<u8>, at: usize },
    File { file: F, path: Vec<u8>, left: u64 },
    End,
}

impl<O: FnMut(&[u8]) -> io::Result<F>, F: Read> Restored<O, F> {
    /// Reads from the files that `open` gives for their paths.
    pub fn open(recipe: &Path, open: O) -> Result<Self, ReadError> {
        Ok(Self {
            records: Records::open(recipe)?,
            open,
            part: Part::Bytes {
                bytes: Vec::new(),
                at: 0,
            },
        })
    }

    /// Puts the next bytes into `buffer`, which is not empty; 0 at the end.
    pub fn next_piece(&mut self, buffer: &mut [u8]) -> Result<usize, RestoreError> {
        loop {
            match &mut self.part {
                Part::Bytes { bytes, at } if *at < bytes.len() => {
                    let length = buffer.len().min(bytes.len() - *at);
                    buffer[..length].copy_from_slice(&bytes[*at..*at + length]);
                    *at += length;
                    return Ok(length);
                }
                Part::File { file, path, left } if *left > 0 => {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX);
                    let most = most.min(buffer.len());
                    let count = match file.read(&mut buffer[..most]) {
                        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                        other => other,
                    };
                    let count = count.map_err(|source| failed(path, source))?;
                    *left -= count as u64;
                    return Ok(count);
                }
                Part::End => return Ok(0),
                Part::Bytes { .. } | Part::File { .. } => {}
            }
            self.part = match self.records.next_record()? {
                Record::Bytes(bytes) => Part::Bytes { bytes, at: 0 },
                Record::File { length, path } => Part::File {
                    file: (self.open)(&path).map_err(|source| failed(&path, source))?,
                    path,
                    left: length,
                },
                Record::End { .. } => Part::End,
            };
        }
    }
}

fn failed(path: &[u8], source: io::Error) -> RestoreError {
    let name = printable(path);
    RestoreError::File { name, source }
}

impl<O: FnMut(&[u8]) -> io::Result<F>, F: Read> Read for Restored<O, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.next_piece(buffer).map_err(io::Error::other)
    }
}
