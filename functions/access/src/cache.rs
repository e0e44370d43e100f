//! What a warm instance knows of users: their account, and what was granted and counted, for a bounded time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokentill::domain::{
    account::Account,
    gate::{Counted, Granted},
    id::UserId,
    time::EpochSecs,
};

/// How many users are known at most; beyond that all are forgotten, which costs one read each. An account has about 2 KB.
const MAX_USERS: usize = 4_096;

/// What is known of one user.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// The account; `None` if there is none.
    pub(crate) account: Option<Arc<Account>>,
    /// What was granted; a lower bound.
    pub(crate) granted: Granted,
    /// What was counted; `None` where no quota needs it.
    pub(crate) counted: Option<Counted>,
    /// Whether the user's plan had a quota.
    pub(crate) has_quotas: bool,
    /// When the account began to be read, in milliseconds since 1970.
    pub(crate) read_at_ms: i64,
    /// When access changes by itself, a real moment.
    pub(crate) changes_at: Option<EpochSecs>,
}

impl Known {
    /// How old the account is at this moment, in milliseconds; `None` if it may not be used, because access has changed by
    /// itself or the clock was set back.
    pub(crate) fn age_ms(&self, now_ms: i64) -> Option<i64> {
        let has_changed = self.changes_at.is_some_and(|at| at <= EpochSecs::from_ms(now_ms));
        let age_ms = now_ms.saturating_sub(self.read_at_ms);
        (!has_changed && age_ms >= 0).then_some(age_ms)
    }
}

/// The users that a warm instance knows.
#[derive(Debug)]
pub struct Cache {
    max_age_ms: i64,
    users: Mutex<HashMap<UserId, Known>>,
}

impl Cache {
    /// An empty one, whose entries are used for so many seconds; with 0 none ever is.
    #[must_use]
    pub fn new(max_age_secs: u32) -> Self {
        Self { max_age_ms: i64::from(max_age_secs).saturating_mul(1_000), users: Mutex::default() }
    }

    /// What is known of a user and not too old.
    pub(crate) fn fresh(&self, user_id: &UserId, now_ms: i64) -> Option<Known> {
        let is_fresh = |known: &&Known| known.age_ms(now_ms).is_some_and(|age_ms| age_ms < self.max_age_ms);
        self.users().get(user_id).filter(is_fresh).cloned()
    }

    /// Whether a quota mattered when the user was last seen, however long ago; `None` for a user never seen.
    pub(crate) fn had_quotas(&self, user_id: &UserId) -> Option<bool> {
        self.users().get(user_id).map(|known| known.has_quotas)
    }

    pub(crate) fn keep(&self, user_id: &UserId, known: Known) {
        if self.max_age_ms == 0 {
            return;
        }
        let mut users = self.users();
        if users.len() >= MAX_USERS && !users.contains_key(user_id) {
            users.clear();
        }
        users.insert(user_id.clone(), known);
    }

    fn users(&self) -> MutexGuard<'_, HashMap<UserId, Known>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(read_at_ms: i64, changes_at: Option<i64>) -> Known {
        Known {
            account: None,
            granted: Granted::default(),
            counted: None,
            has_quotas: false,
            read_at_ms,
            changes_at: changes_at.map(EpochSecs::new),
        }
    }

    #[test]
    fn what_is_known_is_used_for_its_time_and_not_beyond_the_moment_at_which_access_changes() {
        let user = UserId::new("ada").unwrap();
        let cache = Cache::new(5);
        cache.keep(&user, known(100_000, None));
        for (now_ms, expected) in [(99_999, false), (100_000, true), (104_999, true), (105_000, false)] {
            assert_eq!(cache.fresh(&user, now_ms).is_some(), expected, "{now_ms}");
        }
        cache.keep(&user, known(100_000, Some(102)));
        assert!(cache.fresh(&user, 101_999).is_some() && cache.fresh(&user, 102_000).is_none());
        let off = Cache::new(0);
        off.keep(&user, known(100_000, None));
        assert!(off.fresh(&user, 100_000).is_none() && off.had_quotas(&user).is_none());
    }

    #[test]
    fn it_never_knows_more_users_than_it_may() {
        let cache = Cache::new(60);
        for n in 0..3 * MAX_USERS {
            cache.keep(&UserId::new(format!("user_{n}")).unwrap(), known(0, None));
            assert!(cache.users().len() <= MAX_USERS);
        }
    }
}
