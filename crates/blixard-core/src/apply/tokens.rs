//! Join tokens: made, shown, revoked.

use crate::limits::{self, TOKENS_MAX, room_for_one};
use crate::{Answer, Outcome, Rejection, SecretHash, State, Token, TokenId, UnixMs};

/// How long a token that lets nobody in any more is kept, so that whoever shows it is told why it does not work.
const SPENT_TOKEN_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

impl Token {
    /// Whether it lets nobody in any more, and has not for so long that nobody needs to be told why. When it was revoked
    /// or used up is not recorded, so its age stands in for that.
    fn is_forgotten(&self, at: UnixMs) -> bool {
        let old = |since: UnixMs| at.since_ms(since) > SPENT_TOKEN_KEPT_MS;
        let spent = self.revoked || self.uses_left == Some(0);
        (spent && old(self.created_at)) || self.expires_at.is_some_and(old)
    }
}

impl State {
    pub(super) fn create_token(&mut self, token: &Token, at: UnixMs) -> Outcome {
        limits::token(token, at)?;
        if self.tokens.contains_key(&token.id) {
            return limits::invalid(format!("a token {} exists already", token.id));
        }
        let kept = self.tokens.values().filter(|known| !known.is_forgotten(at)).count();
        room_for_one(kept, TOKENS_MAX, "join tokens")?;
        self.tokens.retain(|_, known| !known.is_forgotten(at));
        self.tokens.insert(token.id, Token { created_at: at, revoked: false, ..token.clone() });
        Ok(Answer::Done)
    }

    pub(super) fn revoke_token(&mut self, id: TokenId) -> Outcome {
        self.tokens.get_mut(&id).ok_or(Rejection::UnknownToken(id))?.revoked = true;
        Ok(Answer::Done)
    }

    /// The token, when what was shown lets a node in at `at`. The secret is checked before anything else, so that nobody
    /// learns a token's state from its id alone.
    pub(super) fn usable_token(
        &mut self,
        shown: Option<&(TokenId, SecretHash)>,
        at: UnixMs,
    ) -> Result<&mut Token, Rejection> {
        let (id, secret_hash) = shown.ok_or(Rejection::TokenMissing)?;
        let token = self.tokens.get_mut(id).ok_or(Rejection::UnknownToken(*id))?;
        if token.secret_hash != *secret_hash {
            return Err(Rejection::WrongSecret);
        }
        if token.revoked {
            return Err(Rejection::TokenRevoked);
        }
        if token.expires_at.is_some_and(|expires_at| expires_at <= at) {
            return Err(Rejection::TokenExpired);
        }
        if token.uses_left == Some(0) {
            return Err(Rejection::TokenUsedUp);
        }
        Ok(token)
    }
}
