//! Bounded maps for what can be had again from the disk.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A map that forgets: entries not asked for while half of the room was filled anew are gone.
///
/// Two generations instead of a list of uses: no bookkeeping on a hit in the young one, and at most
/// `room` weight is held.
#[derive(Debug)]
pub(crate) struct Cache<K, V>(Mutex<Generations<K, V>>);

#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, (V, usize)>,
    old: HashMap<K, (V, usize)>,
    weight: usize,
    half: usize,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// A map for entries that weigh `room` together.
    pub(crate) fn new(room: usize) -> Self {
        let (young, old) = (HashMap::new(), HashMap::new());
        Self(Mutex::new(Generations {
            young,
            old,
            weight: 0,
            half: room / 2,
        }))
    }

    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let mut map = self.lock();
        if let Some((value, _)) = map.young.get(key) {
            return Some(value.clone());
        }
        let (key, (value, weight)) = map.old.remove_entry(key)?;
        map.insert(key, value.clone(), weight);
        Some(value)
    }

    /// Keeps `value`, unless it alone is heavier than half of the room.
    pub(crate) fn insert(&self, key: K, value: V, weight: usize) {
        let mut map = self.lock();
        map.old.remove(&key);
        if weight <= map.half {
            map.insert(key, value, weight);
        }
    }

    pub(crate) fn remove<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let mut map = self.lock();
        map.old.remove(key);
        if let Some((_, weight)) = map.young.remove(key) {
            map.weight -= weight;
        }
    }

    /// Keeps only the entries whose key passes.
    pub(crate) fn retain(&self, mut pass: impl FnMut(&K) -> bool) {
        let mut map = self.lock();
        map.old.retain(|key, _| pass(key));
        map.young.retain(|key, _| pass(key));
        map.weight = map.young.values().map(|(_, weight)| weight).sum();
    }

    fn lock(&self) -> MutexGuard<'_, Generations<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, V> Generations<K, V> {
    fn insert(&mut self, key: K, value: V, weight: usize) {
        if self.weight + weight > self.half {
            self.old = std::mem::take(&mut self.young);
            self.weight = 0;
        }
        self.weight += weight;
        if let Some((_, before)) = self.young.insert(key, (value, weight)) {
            self.weight -= before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_is_used_and_no_more_than_its_room() {
        let cache = Cache::new(10);
        for key in 0..100 {
            cache.insert(key, key, 1);
            assert_eq!(cache.get(&0), Some(0), "used all the time");
            let map = cache.lock();
            assert!(map.young.len() + map.old.len() <= 10);
        }
        assert_eq!(cache.get(&50), None);
        cache.insert(7, 7, 6);
        assert_eq!(cache.get(&7), None, "heavier than half of the room");
    }

    #[test]
    fn replaced_and_removed_entries_weigh_nothing() {
        let cache = Cache::new(4);
        for value in 0..50 {
            cache.insert("same", value, 1);
        }
        cache.insert("other", 1, 1);
        assert_eq!((cache.get("same"), cache.get("other")), (Some(49), Some(1)));
        cache.remove("same");
        assert_eq!(cache.get("same"), None);
        cache.retain(|key| *key != "other");
        assert_eq!(cache.get("other"), None);
        assert_eq!(cache.lock().weight, 0);
    }
}
