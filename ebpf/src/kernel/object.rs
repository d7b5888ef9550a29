//! The embedded object: loading it for one interface, and typed access to its maps. It attaches nothing.

use std::fmt;
use std::path::Path;

use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use freshet_ebpf_abi as abi;
use freshet_ebpf_abi::{Class, Config, Counter, Direction, Meta};

use super::KernelError;
use crate::reading::Traffic;

/// Built by `cargo xtask ebpf` from `ebpf/programs`.
static OBJECT: &[u8] = include_bytes_aligned!("../../object/freshet.o");

/// The object with its maps made or found, its programs not yet loaded.
pub(super) fn load(link_header: u32, pins: Option<&Path>) -> Result<(Ebpf, Maps), KernelError> {
    let mut loader = EbpfLoader::new();
    loader.override_global(abi::constant::LINK_HEADER, &link_header, true);
    loader.verifier_log_level(VerifierLogLevel::DISABLE);
    if let Some(pins) = pins {
        for name in abi::map::ALL {
            loader.map_pin_path(name, pins.join(name));
        }
    }
    let mut ebpf = loader.load(OBJECT)?;
    let maps = Maps::of(&mut ebpf)?;
    Ok((ebpf, maps))
}

/// One of the programs by name.
pub(super) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, KernelError> {
    let program = ebpf.program_mut(name).ok_or(KernelError::Object { what: name })?;
    program.try_into().map_err(|_| KernelError::Object { what: name })
}

/// The maps of one interface.
pub(super) struct Maps {
    ports: Array<MapData, u8>,
    config: Array<MapData, [u32; 4]>,
    counters: PerCpuArray<MapData, [u64; 2]>,
    meta: Array<MapData, [u64; 4]>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    fn of(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let mut take = |what: &'static str| ebpf.take_map(what).ok_or(KernelError::Object { what });
        Ok(Self {
            ports: take(abi::map::PORTS)?.try_into()?,
            config: take(abi::map::CONFIG)?.try_into()?,
            counters: take(abi::map::COUNTERS)?.try_into()?,
            meta: take(abi::map::META)?.try_into()?,
        })
    }

    pub(super) fn set_config(&mut self, config: Config) -> Result<(), KernelError> {
        Ok(self.config.set(0, config.words(), 0)?)
    }

    pub(super) fn set_port(&mut self, port: u16, class: Class) -> Result<(), KernelError> {
        Ok(self.ports.set(u32::from(port), class as u8, 0)?)
    }

    pub(super) fn meta(&self) -> Result<Meta, KernelError> {
        Ok(self.meta.get(&0, 0)?.into())
    }

    pub(super) fn set_meta(&mut self, meta: Meta) -> Result<(), KernelError> {
        Ok(self.meta.set(0, meta.words(), 0)?)
    }

    /// The ports that have a class. Asks the kernel for each, which takes some 20 ms.
    pub(super) fn registered_ports(&self) -> Result<Vec<u16>, KernelError> {
        let mut found = Vec::new();
        for port in 0..=u16::MAX {
            if self.ports.get(&u32::from(port), 0)? != Class::Other as u8 {
                found.push(port);
            }
        }
        Ok(found)
    }

    /// One counter, summed over the CPUs.
    pub(super) fn count(&self, class: Class, direction: Direction) -> Result<Traffic, KernelError> {
        let index = abi::counter_index(class.index(), direction);
        let cells = self.counters.get(&(index as u32), 0)?;
        Ok(cells.iter().map(|&cell| Counter::from(cell)).fold(Traffic::default(), |sum, cell| Traffic {
            bytes: sum.bytes.wrapping_add(cell.bytes),
            packets: sum.packets.wrapping_add(cell.packets),
        }))
    }
}

/// What an earlier run left in a map that is pinned here, if it is one.
pub(super) fn pinned_meta(path: &Path) -> Option<Meta> {
    let map = aya::maps::Map::Array(MapData::from_pin(path).ok()?);
    let meta: Array<MapData, [u64; 4]> = map.try_into().ok()?;
    Some(meta.get(&0, 0).ok()?.into())
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_object_is_that_of_the_sources() {
        let recorded = include_str!("../../object/SHA256SUMS");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut names = Vec::new();
        for line in recorded.lines() {
            let (sum, name) = line.split_once("  ").expect("a checksum, two blanks, a name");
            let content = std::fs::read(root.join(name)).unwrap();
            let found: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(found, sum, "{name} changed since the object was built: run `cargo xtask ebpf`");
            names.push(name);
        }
        // A source file that nobody recorded could change unnoticed.
        for file in std::fs::read_dir(root.join("programs/src")).unwrap() {
            let name = format!("programs/src/{}", file.unwrap().file_name().to_str().unwrap());
            assert!(names.contains(&name.as_str()), "{name} is not in object/SHA256SUMS");
        }
        assert!(names.contains(&"object/freshet.o") && names.contains(&"abi/src/lib.rs"));
    }

    #[test]
    fn the_object_has_all_that_the_loader_looks_for() {
        let object = aya_names(OBJECT);
        let programs = [abi::program::INGRESS, abi::program::EGRESS, abi::program::EMPTY];
        for name in abi::map::ALL.into_iter().chain(programs).chain([abi::constant::LINK_HEADER]) {
            assert!(object.contains(name), "the object has no symbol {name}");
        }
    }

    /// Symbol names stand in the object's string table as they are.
    fn aya_names(object: &[u8]) -> String {
        String::from_utf8_lossy(object).into_owned()
    }
}
