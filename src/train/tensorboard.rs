//! The run's curves as a TensorBoard event file.
//!
//! The file is a sequence of TFRecords: length (u64), masked CRC-32C of it, payload, masked CRC-32C of the payload, all
//! little-endian; each payload is a protobuf `Event`. Only what scalars need is written: `wall_time` (1, double), `step`
//! (2, int64), `file_version` (3, string), `summary` (5) with `value` (1) of `tag` (1, string) and `simple_value` (2,
//! float), `session_log` (7) with `status` (1). Every process writes a file of its own; it begins with the session log
//! START, which tells TensorBoard to forget what earlier files say of that step and later ones: those are done again.
//! Reference: TensorFlow `record_writer.h`, `event.proto`, `summary.proto`; `purge_step` of PyTorch's `SummaryWriter`.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An open event file.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Starts an event file in `folder` for steps from `first` on, named by the present second and process, as TensorBoard
    /// expects them.
    pub fn create(folder: &Path, first: u64) -> Result<EventFile> {
        let name = format!("events.out.tfevents.{:010}.llamantino.{}", now() as u64, std::process::id());
        let path = folder.join(name);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut events = EventFile { file: file.map_err(|error| Error::io(&path, "open", error))?, path };
        let mut event = Vec::new();
        put_double(&mut event, 1, now());
        put_bytes(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        let mut start = Vec::new();
        put_double(&mut start, 1, now());
        start.push(2 << 3);
        put_varint(&mut start, first);
        put_bytes(&mut start, 7, &[1 << 3, 1]);
        events.record(&start)?;
        Ok(events)
    }

    /// Writes one value of each curve at `step`.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, tag.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        put_double(&mut event, 1, now());
        event.push(2 << 3);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, payload: &[u8]) -> Result<()> {
        self.file.write_all(&framed(payload)).map_err(|error| Error::io(&self.path, "write", error))
    }
}

/// A payload as a TFRecord.
fn framed(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(payload);
    record.extend(masked_crc(payload).to_le_bytes());
    record
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// CRC-32C (Castagnoli), rotated and shifted as TFRecord wants it.
fn masked_crc(bytes: &[u8]) -> u32 {
    let crc = !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 })
    });
    (crc >> 15 | crc << 17).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_castagnoli_masked() {
        // RFC 3720 B.4: CRC-32C of 32 zero bytes is 0x8A9136AA; of "123456789" (the usual check value) 0xE3069283.
        let unmask = |masked: u32| masked.wrapping_sub(0xA282_EAD8).rotate_left(15);
        assert_eq!(unmask(masked_crc(&[0; 32])), 0x8A91_36AA);
        assert_eq!(unmask(masked_crc(b"123456789")), 0xE306_9283);
    }

    #[test]
    fn a_scalar_is_an_event_of_the_published_form() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), 300).unwrap();
        events.scalars(300, &[("loss", 2.5)]).unwrap();
        let bytes = std::fs::read(&events.path).unwrap();
        let mut payloads = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            payloads.push(&rest[12..12 + length]);
            rest = &rest[length + 16..];
        }
        let [version, start, scalar] = payloads[..] else { panic!("{} events", payloads.len()) };
        assert!(version.ends_with(b"brain.Event:2"));
        let step_300 = [0x10, 0xAC, 0x02];
        assert_eq!(start[9..], [&step_300[..], &[0x3a, 2, 0x08, 1]].concat(), "a session that starts at step 300");
        assert_eq!(scalar[9..12], step_300, "step 300 as a varint");
        let mut entry = b"\x0a\x04loss\x15".to_vec();
        entry.extend(2.5f32.to_le_bytes());
        assert!(scalar.ends_with(&entry));
    }
}
