//! Files of rows: JSONL and CSV, plain or xz, one row at a time in bounded memory.
//!
//! A row that cannot be read is a value ([`RowFault`]) and harms no other row. Knows neither labels
//! nor models.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};

/// Longest row accepted, in bytes: the longest text in JSON escapes, with room to spare.
pub const MAX_ROW_BYTES: usize = 1 << 20;

const BOM: &[u8] = "\u{feff}".as_bytes();

/// How the rows of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated, RFC 4180, with a header row.
    Csv,
}

/// Format of a file by its name, a final `.xz` aside.
pub fn format_of(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    match name.strip_suffix(".xz").unwrap_or(&name).rsplit_once('.')?.1 {
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        "csv" => Some(Format::Csv),
        _ => None,
    }
}

/// A writer of CSV for people: begun with the mark by which Excel knows UTF-8.
///
/// # Errors
/// When `out` cannot be written.
pub fn spreadsheet<W: Write>(mut out: W) -> io::Result<csv::Writer<W>> {
    out.write_all(BOM)?;
    Ok(csv::Writer::from_writer(out))
}

/// A reader of `path`, decompressed when its name ends in `.xz`; standard input for `-`.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(path: &Path) -> io::Result<Box<dyn BufRead + Send>> {
    open_counted(path, &Arc::default())
}

/// As [`open`]; `n_read` counts the bytes read from the file, before decompression.
///
/// # Errors
/// When the file cannot be opened.
pub fn open_counted(path: &Path, n_read: &Arc<AtomicU64>) -> io::Result<Box<dyn BufRead + Send>> {
    const CAPACITY: usize = 1 << 16;
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = Counted { inner: File::open(path)?, n_read: Arc::clone(n_read) };
    if path.extension().is_some_and(|it| it == "xz") {
        let xz = liblzma::read::XzDecoder::new_multi_decoder(file);
        return Ok(Box::new(BufReader::with_capacity(CAPACITY, xz)));
    }
    Ok(Box::new(BufReader::with_capacity(CAPACITY, file)))
}

struct Counted<R> {
    inner: R,
    n_read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.n_read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Why one row cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFault {
    /// Stable code.
    pub code: &'static str,
    /// What is wrong; never holds the row's text.
    pub reason: String,
    /// What to do about it.
    pub fix: &'static str,
}

/// Bytes of a row, or why there are none.
type Content = Result<Vec<u8>, RowFault>;

/// One row as it stands in the file.
#[derive(Debug, Clone)]
pub struct RawRow {
    /// Number of the row, from 1, header and blank lines not counted.
    pub row: u64,
    /// Line it begins on, from 1.
    pub line: u64,
    content: Content,
    /// The header, when the file is a table.
    header: Option<Header>,
}

impl RawRow {
    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.content.as_ref().map_or(0, Vec::len)
    }

    /// True when there is nothing in it to read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row's fields by name. Fields of CSV are strings; an empty one is left out.
    ///
    /// # Errors
    /// [`RowFault`] when the row is no UTF-8, no JSON object, or has not as many fields as the header.
    pub fn fields(&self) -> Result<Map<String, Value>, RowFault> {
        let bytes = self.content.as_ref().map_err(RowFault::clone)?;
        let text = std::str::from_utf8(bytes).map_err(|error| RowFault {
            code: "invalid_utf8",
            reason: format!("byte {} of the row is not UTF-8", error.valid_up_to() + 1),
            fix: "save the file as UTF-8 (it may be GBK)",
        })?;
        match &self.header {
            None => json_fields(text),
            Some(header) => header.fields(text),
        }
    }
}

fn json_fields(text: &str) -> Result<Map<String, Value>, RowFault> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(RowFault {
            code: "not_an_object",
            reason: "the line is JSON but no object".into(),
            fix: "write one object a line, such as {\"id\":\"1\",\"text\":\"…\"}",
        }),
        // The error's own words may quote the row: only its place is told.
        Err(error) => Err(RowFault {
            code: "invalid_json",
            reason: format!("not JSON from column {} on", error.column()),
            fix: "write one JSON object a line; quotes and line breaks inside a text are escaped",
        }),
    }
}

/// Names of a table's columns, and what stands between its fields.
#[derive(Debug, Clone)]
struct Header {
    names: Arc<[String]>,
    delimiter: u8,
}

impl Header {
    fn fields(&self, text: &str) -> Result<Map<String, Value>, RowFault> {
        let values = csv_values(text, self.delimiter)?;
        if values.len() != self.names.len() {
            return Err(RowFault {
                code: "field_count",
                reason: format!("{} fields, the header has {}", values.len(), self.names.len()),
                fix: "quote fields that hold separators, quotes or line breaks",
            });
        }
        let named = self.names.iter().cloned().zip(values).filter(|it| !it.1.is_empty());
        Ok(named.map(|(name, it)| (name, Value::String(it))).collect())
    }
}

fn csv_values(text: &str, delimiter: u8) -> Result<Vec<String>, RowFault> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(text.len() + 1)
        .from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    // Memory is read and UTF-8 is known: nothing is left that can fail.
    reader.read_record(&mut record).map_err(|_| RowFault {
        code: "invalid_csv",
        reason: "not a CSV record".into(),
        fix: "quote fields that hold separators, quotes or line breaks",
    })?;
    Ok(record.iter().map(str::to_owned).collect())
}

/// The rows of one file, in order.
pub struct Rows<R> {
    source: R,
    /// Read and not yet given out from `begin` on.
    buffer: Vec<u8>,
    begin: usize,
    is_at_end: bool,
    /// Between the fields of a table; none for JSONL.
    delimiter: Option<u8>,
    header: Option<Header>,
    row: u64,
    line: u64,
}

impl<R: Read> Rows<R> {
    /// The rows of `source`. Reads the header when `format` is CSV.
    ///
    /// # Errors
    /// When `source` cannot be read, or as [`io::ErrorKind::InvalidData`] when the header is missing
    /// or useless.
    pub fn new(source: R, format: Format) -> io::Result<Self> {
        Self::delimited(source, (format == Format::Csv).then_some(b','))
    }

    /// The rows of a table whose fields are separated by tabs.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_tabs(source: R) -> io::Result<Self> {
        Self::delimited(source, Some(b'\t'))
    }

    fn delimited(source: R, delimiter: Option<u8>) -> io::Result<Self> {
        let mut rows = Self {
            source,
            buffer: Vec::new(),
            begin: 0,
            is_at_end: false,
            delimiter,
            header: None,
            row: 0,
            line: 1,
        };
        while rows.buffer.len() < BOM.len() && rows.fill()? {}
        if rows.buffer.starts_with(BOM) {
            rows.begin = BOM.len();
        }
        if let Some(delimiter) = delimiter {
            rows.header = Some(Header { names: rows.read_header(delimiter)?, delimiter });
        }
        Ok(rows)
    }

    /// Names of the columns, when the file is a table.
    pub fn header(&self) -> Option<&[String]> {
        self.header.as_ref().map(|it| &*it.names)
    }

    fn read_header(&mut self, delimiter: u8) -> io::Result<Arc<[String]>> {
        let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
        let (_, content) = self
            .next_content()?
            .ok_or_else(|| invalid("the file is empty; a CSV file starts with a header row"))?;
        let bytes = content.map_err(|fault| invalid(&format!("header row: {}", fault.reason)))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| invalid("the header row is not UTF-8; save the file as UTF-8"))?;
        let names = csv_values(&text, delimiter).map_err(|fault| invalid(&fault.reason))?;
        let names: Vec<String> = names.iter().map(|it| it.trim().to_owned()).collect();
        for (idx, name) in names.iter().enumerate() {
            if !name.is_empty() && names[..idx].contains(name) {
                return Err(invalid(&format!("column {} has the name of an earlier one", idx + 1)));
            }
        }
        Ok(names.into())
    }

    /// Reads more; false at the end of the source.
    fn fill(&mut self) -> io::Result<bool> {
        const STEP: usize = 1 << 16;
        self.buffer.drain(..std::mem::take(&mut self.begin));
        let old = self.buffer.len();
        self.buffer.resize(old + STEP, 0);
        let n_read = loop {
            match self.source.read(&mut self.buffer[old..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(old + *n_read.as_ref().unwrap_or(&0));
        let n_read = n_read?;
        self.is_at_end = n_read == 0;
        Ok(n_read > 0)
    }

    /// Line and content of the next row that is not blank.
    fn next_content(&mut self) -> io::Result<Option<(u64, Content)>> {
        loop {
            let rest = &self.buffer[self.begin..];
            let end = match self.delimiter {
                Some(delimiter) => record_end(rest, delimiter),
                None => rest.iter().position(|&it| it == b'\n'),
            };
            let line = self.line;
            let (content, n_taken) = match end {
                Some(end) if end <= MAX_ROW_BYTES => (Ok(rest[..end].to_vec()), end + 1),
                None if rest.len() <= MAX_ROW_BYTES && !self.is_at_end => {
                    self.fill()?;
                    continue;
                }
                None if rest.is_empty() => return Ok(None),
                // A quote that nothing closes would swallow the rest of the file: only its first
                // line is given up.
                _ if self.delimiter.is_some_and(|it| has_open_quote(rest, it)) => {
                    let first =
                        rest.iter().position(|&it| it == b'\n').map_or(rest.len(), |it| it + 1);
                    (Err(open_quote()), first)
                }
                None if rest.len() <= MAX_ROW_BYTES => (Ok(rest.to_vec()), rest.len()),
                _ => {
                    self.skip_line()?;
                    self.line += 1;
                    return Ok(Some((line, Err(too_long()))));
                }
            };
            let taken = &self.buffer[self.begin..self.begin + n_taken];
            self.line += taken.iter().filter(|&&it| it == b'\n').count() as u64;
            self.begin += n_taken;
            if content.as_ref().is_ok_and(|it| it.trim_ascii().is_empty()) {
                continue;
            }
            return Ok(Some((line, content)));
        }
    }

    /// Leaves out everything up to and with the next line break.
    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            if let Some(end) = self.buffer[self.begin..].iter().position(|&it| it == b'\n') {
                self.begin += end + 1;
                return Ok(());
            }
            self.begin = self.buffer.len();
            if !self.fill()? {
                return Ok(());
            }
        }
    }
}

impl<R: Read> Iterator for Rows<R> {
    type Item = io::Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        let (line, content) = match self.next_content().transpose()? {
            Ok(found) => found,
            Err(error) => return Some(Err(error)),
        };
        self.row += 1;
        Some(Ok(RawRow { row: self.row, line, content, header: self.header.clone() }))
    }
}

fn open_quote() -> RowFault {
    RowFault {
        code: "open_quote",
        reason: "a quoted field begins on this line and is never closed".into(),
        fix: "close the quote, or double quotes that belong to the text",
    }
}

fn too_long() -> RowFault {
    RowFault {
        code: "row_too_long",
        reason: format!("the row has more than {MAX_ROW_BYTES} bytes"),
        fix: "split the text into several rows",
    }
}

/// Offset of the line break that ends the first CSV record; `None` when it is not in `bytes`.
fn record_end(bytes: &[u8], delimiter: u8) -> Option<usize> {
    scan(bytes, delimiter).0
}

fn has_open_quote(bytes: &[u8], delimiter: u8) -> bool {
    scan(bytes, delimiter).1
}

/// The record's end, and whether `bytes` end inside quotes. A quote opens a field only as its first
/// character, as the csv crate has it.
fn scan(bytes: &[u8], delimiter: u8) -> (Option<usize>, bool) {
    let (mut is_quoted, mut is_field_start) = (false, true);
    for (at, &byte) in bytes.iter().enumerate() {
        if is_quoted {
            is_quoted = byte != b'"';
            continue;
        }
        match byte {
            b'\n' => return (Some(at), false),
            // The second of a doubled quote opens again what the first one closed.
            b'"' if is_field_start || bytes[at - 1] == b'"' => is_quoted = true,
            _ => {}
        }
        is_field_start = byte == delimiter;
    }
    (None, is_quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Line, and fields or code of the fault.
    type Line = (u64, Result<Map<String, Value>, &'static str>);

    fn read(format: Format, bytes: &[u8]) -> Vec<Line> {
        // A few bytes at a time, so that every boundary is a boundary of a read; more in the long row.
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let step = if self.0.len() > 1 << 10 { 1 << 15 } else { 7 };
                let n = self.0.len().min(step).min(into.len());
                into[..n].copy_from_slice(&self.0[..n]);
                self.0 = &self.0[n..];
                Ok(n)
            }
        }
        let rows = Rows::new(Slow(bytes), format).unwrap();
        rows.map(|it| it.unwrap()).map(|it| (it.line, it.fields().map_err(|it| it.code))).collect()
    }

    #[test]
    fn bad_json_lines_fail_alone() {
        let mut bytes = b"\xef\xbb\xbf{\"text\":\"a\"}\r\n\n[1]\n{\"text\":\n\xff\xfe\n".to_vec();
        bytes.extend(vec![b'x'; MAX_ROW_BYTES + 9]);
        bytes.extend(b"\n{\"text\":\"last, without a line break\"}");
        let rows = read(Format::Jsonl, &bytes);
        let seen: Vec<_> = rows.iter().map(|it| (it.0, it.1.as_ref().err().copied())).collect();
        assert_eq!(
            seen,
            [
                (1, None),
                (3, Some("not_an_object")),
                (4, Some("invalid_json")),
                (5, Some("invalid_utf8")),
                (6, Some("row_too_long")),
                (7, None),
            ]
        );
    }

    #[test]
    fn csv_rows_keep_quotes_commas_and_line_breaks() {
        let bytes = "\u{feff}id,text\r\n1,\"a,\"\"b\"\"\n二\"\r\n2,5\"屏\n\n3\n4,\"\"\n".as_bytes();
        let rows = read(Format::Csv, bytes);
        let text = |idx: usize| rows[idx].1.as_ref().unwrap().get("text").cloned();
        assert_eq!(text(0), Some("a,\"b\"\n二".into()));
        assert_eq!(text(1), Some("5\"屏".into()));
        assert_eq!((rows[2].0, rows[2].1.clone()), (6, Err("field_count")));
        assert_eq!((text(3), rows.len()), (None, 4));
    }

    #[test]
    fn an_open_quote_costs_one_line() {
        let rows = read(Format::Csv, "id,text\n1,\"open\n2,b\n3,c\n".as_bytes());
        let seen: Vec<_> = rows.iter().map(|it| (it.0, it.1.as_ref().err().copied())).collect();
        assert_eq!(seen, [(2, Some("open_quote")), (3, None), (4, None)]);
    }

    #[test]
    fn useless_headers_are_refused() {
        for (name, bytes) in
            [("empty", &b""[..]), ("twice", b"text,text\n"), ("gbk", b"\xc4\xda\n")]
        {
            assert!(Rows::new(bytes, Format::Csv).is_err(), "{name}");
        }
    }

    #[test]
    fn formats_go_by_the_name() {
        let cases = [
            ("a.jsonl", Some(Format::Jsonl)),
            ("a.JSONL.xz", Some(Format::Jsonl)),
            ("b/a.csv", Some(Format::Csv)),
            ("a.txt", None),
            ("a", None),
        ];
        for (name, expected) in cases {
            assert_eq!(format_of(Path::new(name)), expected, "{name}");
        }
    }
}
