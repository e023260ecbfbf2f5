//! A set of small numbers in words of 64 bits, with levels above that say which words are full: the next number that
//! is not in it is found in a step per level. The words live in a file, or in memory while it is made anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where the words are.
pub trait Words {
    /// The word at `index`; beyond the end it is 0.
    fn get(&self, index: usize) -> io::Result<u64>;
    /// Changes the word at `index`.
    fn put(&mut self, index: usize, word: u64) -> io::Result<()>;
}

/// A set of the numbers below `size`.
#[derive(Debug)]
pub struct Bitmap<W> {
    words: W,
    /// First word and number of bits of each level, the lowest first.
    levels: Vec<(usize, usize)>,
}

impl<W: Words> Bitmap<W> {
    /// The set of numbers below `size` that is in `words`.
    pub fn new(words: W, size: usize) -> Self {
        let (mut levels, mut first, mut bits) = (Vec::new(), 0, size);
        loop {
            levels.push((first, bits));
            let count = bits.div_ceil(64);
            if count <= 1 {
                return Self { words, levels };
            }
            (first, bits) = (first + count, count);
        }
    }

    /// The words.
    pub fn into_words(self) -> W {
        self.words
    }

    /// Puts a number in.
    ///
    /// # Errors
    /// Of the words; so for all here.
    pub fn insert(&mut self, number: usize) -> io::Result<()> {
        let mut number = number;
        for level in 0..self.levels.len() {
            let (first, bits) = self.levels[level];
            let at = first + number / 64;
            let word = self.words.get(at)? | 1 << (number % 64);
            self.words.put(at, word)?;
            if word | padding(bits, number / 64) != u64::MAX {
                return Ok(());
            }
            number /= 64;
        }
        Ok(())
    }

    /// Takes a number out.
    pub fn remove(&mut self, number: usize) -> io::Result<()> {
        let mut number = number;
        for level in 0..self.levels.len() {
            let at = self.levels[level].0 + number / 64;
            let word = self.words.get(at)?;
            let cleared = word & !(1 << (number % 64));
            if level > 0 && cleared == word {
                return Ok(());
            }
            self.words.put(at, cleared)?;
            number /= 64;
        }
        Ok(())
    }

    /// The first number from `from` on that is not in the set.
    pub fn next_absent(&self, from: usize) -> io::Result<Option<usize>> {
        let (mut level, mut at) = (0, from);
        loop {
            let Some((first, bits)) = self.levels.get(level).copied().filter(|(_, bits)| at < *bits) else {
                return Ok(None);
            };
            let below = (1u64 << (at % 64)) - 1;
            let word = self.words.get(first + at / 64)? | below | padding(bits, at / 64);
            if word == u64::MAX {
                // The rest of this word is full: the level above knows which one is not.
                (level, at) = (level + 1, at / 64 + 1);
                continue;
            }
            let found = at / 64 * 64 + word.trailing_ones() as usize;
            match level {
                0 => return Ok(Some(found)),
                _ => (level, at) = (level - 1, found * 64),
            }
        }
    }
}

/// The bits of a level's word that stand for nothing.
fn padding(bits: usize, word: usize) -> u64 {
    match bits.saturating_sub(word * 64) {
        used @ 0..64 => !((1 << used) - 1),
        _ => 0,
    }
}

impl Words for Vec<u64> {
    fn get(&self, index: usize) -> io::Result<u64> {
        Ok(self.as_slice().get(index).copied().unwrap_or(0))
    }

    fn put(&mut self, index: usize, word: u64) -> io::Result<()> {
        if index >= self.len() {
            self.resize(index + 1, 0);
        }
        self[index] = word;
        Ok(())
    }
}

/// Words of a file behind a header of 8 bytes.
impl Words for File {
    fn get(&self, index: usize) -> io::Result<u64> {
        let mut bytes = [0; 8];
        match self.read_exact_at(&mut bytes, 8 + index as u64 * 8) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            other => other.map(|()| u64::from_ne_bytes(bytes)),
        }
    }

    fn put(&mut self, index: usize, word: u64) -> io::Result<()> {
        self.write_all_at(&word.to_ne_bytes(), 8 + index as u64 * 8)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_set_has_nothing_absent() {
        let mut set = Bitmap::new(Vec::new(), 70_000);
        (0..70_000).for_each(|number| set.insert(number).unwrap());
        assert_eq!(set.next_absent(0).unwrap(), None);
        set.remove(69_999).unwrap();
        assert_eq!(set.next_absent(0).unwrap(), Some(69_999));
        assert_eq!(set.next_absent(70_000).unwrap(), None);
        set.insert(69_999).unwrap();
        set.remove(64).unwrap();
        assert_eq!((set.next_absent(3).unwrap(), set.next_absent(65).unwrap()), (Some(64), None));
    }

    proptest! {
        /// It is a set of numbers, whatever its size.
        #[test]
        fn it_is_a_set(
            size in 1usize..5000,
            steps in proptest::collection::vec((any::<bool>(), 0usize..5000), 0..400),
            from in 0usize..5000,
            dense in any::<bool>(),
        ) {
            let (mut set, mut model) = (Bitmap::new(Vec::new(), size), BTreeSet::new());
            if dense {
                for number in 0..size {
                    set.insert(number).unwrap();
                    model.insert(number);
                }
            }
            for (insert, number) in steps {
                let number = number % size;
                if insert {
                    set.insert(number).unwrap();
                    model.insert(number);
                } else {
                    set.remove(number).unwrap();
                    model.remove(&number);
                }
            }
            let expect = (from..size).find(|number| !model.contains(number));
            prop_assert_eq!(set.next_absent(from).unwrap(), expect);
        }
    }
}
