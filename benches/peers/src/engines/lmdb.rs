//! LMDB as a peer, through heed, and its encrypted form, through heed3: two versions of one library with nearly the same face.

use std::path::Path;

use crate::Result;
use crate::settings::Settings;
use crate::workload::{Access, Key, Open, Peer, Value};

/// Room in the address space, not on the disk.
const MAP_BYTES: usize = 32 << 30;

/// How to open databases without encryption.
#[cfg(feature = "lmdb")]
pub fn open_plain(_: &Settings) -> Box<Open> {
    Box::new(|path, access| Ok(Box::new(plain::Lmdb::open(path, access)?)))
}

/// How to open databases whose pages are sealed with AES-256-GCM.
#[cfg(feature = "lmdb-encrypted")]
pub fn open_sealed(_: &Settings) -> Box<Open> {
    Box::new(|path, access| Ok(Box::new(sealed::Lmdb::open(path, access)?)))
}

macro_rules! peer {
    ($module:ident, $heed:ident, $env:ident, $database:ident, |$options:ident, $path:ident| $open:expr) => {
        mod $module {
            use $heed::types::Bytes;
            use $heed::{CommitOrAbort, EnvFlags, EnvOpenOptions, $database, $env};

            use super::*;

            pub struct Lmdb {
                env: $env,
                database: $database<'static, Bytes, Bytes>,
            }

            impl Lmdb {
                #[allow(
                    unsafe_code,
                    reason = "a file mapping is only as good as whoever else writes the file: nobody does"
                )]
                pub fn open($path: &Path, access: &Access) -> Result<Lmdb> {
                    if access.create {
                        std::fs::create_dir($path)?;
                    }
                    let mut $options = EnvOpenOptions::new();
                    $options.map_size(MAP_BYTES);
                    if !access.sync {
                        // SAFETY: data may be lost in a power cut, which is what is compared.
                        unsafe { $options.flags(EnvFlags::NO_SYNC) };
                    }
                    // SAFETY: the directory is this program's own.
                    let env = unsafe { $open }?;
                    let transaction = env.write_txn()?;
                    let database = env
                        .create_databases_and_commit(transaction, |names, transaction| {
                            names.create_database(transaction, None).map(CommitOrAbort::<_, ()>::Commit)
                        })?
                        .unwrap_commit();
                    Ok(Lmdb { env, database })
                }
            }

            impl Peer for Lmdb {
                fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
                    let mut transaction = self.env.write_txn()?;
                    self.database.put(&mut transaction, key, value)?;
                    Ok(transaction.commit()?)
                }

                fn put_batch(&self, entries: &[(Key, Value)]) -> Result<()> {
                    let mut transaction = self.env.write_txn()?;
                    for (key, value) in entries {
                        self.database.put(&mut transaction, key, value)?;
                    }
                    Ok(transaction.commit()?)
                }

                #[allow(unused_mut, reason = "the encrypted form wants it")]
                fn get(&self, key: &Key) -> Result<Option<usize>> {
                    let mut transaction = self.env.read_txn()?;
                    Ok(self.database.get(&mut transaction, key)?.map(|value| value.len()))
                }

                fn scan(&self) -> Result<(u64, u64)> {
                    let (mut entries, mut bytes) = (0, 0);
                    let mut transaction = self.env.read_txn()?;
                    for entry in self.database.iter(&mut transaction)? {
                        let (key, value) = entry?;
                        entries += 1;
                        bytes += (key.len() + value.len()) as u64;
                    }
                    Ok((entries, bytes))
                }

                fn seek(&self, key: &Key, steps: usize) -> Result<usize> {
                    let mut transaction = self.env.read_txn()?;
                    let mut met = 0;
                    let range = (std::ops::Bound::Included(&key[..]), std::ops::Bound::Unbounded);
                    for entry in self.database.range(&mut transaction, &range)?.take(steps) {
                        entry?;
                        met += 1;
                    }
                    Ok(met)
                }

                /// Nothing happens in the background.
                fn settle(&self) -> Result<()> {
                    Ok(self.env.force_sync()?)
                }
            }
        }
    };
}

#[cfg(feature = "lmdb")]
peer!(plain, heed, Env, Database, |options, path| options.open(path));

#[cfg(feature = "lmdb-encrypted")]
peer!(sealed, heed3, EncryptedEnv, EncryptedDatabase, |options, path| options
    .open_encrypted::<aes_gcm::Aes256Gcm, _>([7; 32].into(), path));
