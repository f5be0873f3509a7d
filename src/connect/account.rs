//! Whether a grant may be stored: whose it is, whose was there before, and what of the old one can be kept. Pure.

use super::failure::{Failure, FailureCode};
use crate::google::oauth::id_token::Identity;
use crate::store::{Credential, TokenStatus};

/// The address so far that its owner knows it again: `an…@example.com`.
pub(super) fn shortened(address: Option<&str>) -> String {
    let Some((name, domain)) = address.and_then(|address| address.rsplit_once('@')) else {
        return "an account without a known address".to_owned();
    };
    let shown: String = name.chars().take(2).collect();
    format!("{shown}…@{domain}")
}

/// Refuses a grant of another account than the one that is connected, unless a change was asked for, and one that would
/// leave us without a refresh token. After a disconnect every account is welcome: nothing of the old one is in use.
///
/// That the same account serves two teachers is allowed: schools do share one.
pub(super) fn decide(
    before: Option<&Credential>,
    identity: &Identity,
    has_refresh_token: bool,
    is_account_change: bool,
) -> Result<(), Failure> {
    let in_use = before.filter(|before| before.status != TokenStatus::Disconnected);
    if let Some(before) = in_use
        && before.account != identity.account
        && !is_account_change
    {
        let (expected, chosen) = (shortened(before.email.as_deref()), shortened(identity.email.as_deref()));
        return Err(Failure { accounts: Some((expected, chosen)), ..FailureCode::AccountMismatch.into() });
    }
    if has_refresh_token {
        return Ok(());
    }
    let has_usable_one = before.is_some_and(|before| {
        before.account == identity.account && before.status == TokenStatus::Connected && before.refresh_token.is_some()
    });
    if has_usable_one { Ok(()) } else { Err(FailureCode::NoRefreshToken.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GoogleSub, TeacherId, UnixMillis};

    fn before(account: &str, status: TokenStatus) -> Credential {
        Credential {
            teacher: TeacherId::parse("t").unwrap(),
            account: GoogleSub(account.to_owned()),
            email: Some("anabel@example.com".to_owned()),
            calendar: "primary".to_owned(),
            status,
            token_version: 3,
            refresh_token: (status != TokenStatus::Disconnected).then(|| b"sealed".to_vec()),
            access_token: None,
            access_expires_at: None,
            scopes: String::new(),
            cool_down_until: None,
            cool_down_step: 0,
            connected_at: UnixMillis::new(0),
            last_refresh_at: None,
            last_error: None,
        }
    }

    fn identity(account: &str) -> Identity {
        Identity { account: GoogleSub(account.to_owned()), email: Some("ben@example.org".to_owned()) }
    }

    #[test]
    fn another_account_is_an_explicit_change() {
        for (status, _) in TokenStatus::WORDS {
            let known = before("1", status);
            let asked = decide(Some(&known), &identity("2"), true, false);
            if status == TokenStatus::Disconnected {
                assert_eq!(asked, Ok(()));
            } else {
                let failure = asked.unwrap_err();
                assert_eq!(failure.code, FailureCode::AccountMismatch, "{status:?}");
                let both = ("an…@example.com".to_owned(), "be…@example.org".to_owned());
                assert_eq!(failure.accounts, Some(both));
            }
            assert_eq!(decide(Some(&known), &identity("2"), true, true), Ok(()), "{status:?}");
            assert_eq!(decide(Some(&known), &identity("1"), true, false), Ok(()), "{status:?}");
        }
        assert_eq!(decide(None, &identity("1"), true, false), Ok(()));
    }

    #[test]
    fn without_a_refresh_token_only_a_usable_one_of_the_same_account_helps() {
        let missing = Err(FailureCode::NoRefreshToken.into());
        assert_eq!(decide(None, &identity("1"), false, false), missing);
        for (status, _) in TokenStatus::WORDS {
            let known = before("1", status);
            let kept = decide(Some(&known), &identity("1"), false, false);
            assert_eq!(kept, if status == TokenStatus::Connected { Ok(()) } else { missing.clone() }, "{status:?}");
            assert_eq!(decide(Some(&known), &identity("2"), false, true), missing, "{status:?}");
        }
    }

    #[test]
    fn addresses_are_shortened() {
        assert_eq!(shortened(Some("a@example.com")), "a…@example.com");
        assert_eq!(shortened(Some("ñandú@example.com")), "ña…@example.com");
        assert_eq!(shortened(None), "an account without a known address");
    }
}
