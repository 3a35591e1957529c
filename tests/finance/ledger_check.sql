-- What is wrong with the books of the tenant $1: no rows when all is well. One statement, so it sees one moment.
-- Shares no code with the ledger, and does not rely on its triggers or constraints.
WITH mine AS (
    SELECT $1::text AS tenant
), facts AS (
    SELECT * FROM ledger_mgr.legs, mine WHERE tenant_id = tenant
), sums AS (
    SELECT account, currency, sum(debit) AS debits, sum(credit) AS credits FROM facts GROUP BY account, currency
), held AS (
    SELECT account, currency, sum(debit) AS debits, sum(credit) AS credits
    FROM ledger_mgr.holds, mine,
         LATERAL (VALUES (debit_account, amount - captured, 0), (credit_account, 0, amount - captured))
             AS sides (account, debit, credit)
    WHERE tenant_id = tenant AND state = 1 GROUP BY account, currency
), kept AS (
    SELECT b.*, a.type, a.allow_overdraft, a.overdraft_limit,
           CASE WHEN a.type IN (1, 5) THEN b.debits - b.credits - b.held_credits
                ELSE b.credits - b.debits - b.held_debits END AS available
    FROM ledger_mgr.balances b JOIN ledger_mgr.accounts a ON a.tenant_id = b.tenant_id AND a.name = b.account, mine
    WHERE b.tenant_id = tenant
)
SELECT 'a transaction does not sum to zero' AS problem, position::text || ' ' || currency AS place
FROM facts GROUP BY position, currency HAVING sum(debit) - sum(credit) <> 0
UNION ALL
SELECT 'a currency does not sum to zero', currency FROM kept GROUP BY currency HAVING sum(debits) - sum(credits) <> 0
UNION ALL
SELECT 'the held debits and credits differ', currency
FROM kept GROUP BY currency HAVING sum(held_debits) <> sum(held_credits)
UNION ALL
SELECT 'a balance is not the sum of its legs', coalesce(kept.account, sums.account)
FROM (SELECT * FROM kept WHERE debits > 0 OR credits > 0) AS kept FULL JOIN sums USING (account, currency)
WHERE (kept.debits, kept.credits) IS DISTINCT FROM (sums.debits::bigint, sums.credits::bigint)
UNION ALL
SELECT 'what is held is not the sum of the holds', coalesce(kept.account, held.account)
FROM (SELECT * FROM kept WHERE held_debits > 0 OR held_credits > 0) AS kept FULL JOIN held USING (account, currency)
WHERE (kept.held_debits, kept.held_credits) IS DISTINCT FROM (held.debits::bigint, held.credits::bigint)
UNION ALL
SELECT 'an account is overdrawn', account || ' ' || currency
FROM kept WHERE available < 0 AND NOT (allow_overdraft AND (overdraft_limit = 0 OR available >= -overdraft_limit))
UNION ALL
SELECT 'the log has a gap', (SELECT position FROM ledger_mgr.ledgers, mine WHERE tenant_id = tenant)::text
FROM ledger_mgr.log, mine WHERE tenant_id = tenant
HAVING count(*) <> coalesce((SELECT position FROM ledger_mgr.ledgers, mine WHERE tenant_id = tenant), 0)
    OR count(*) <> coalesce(max(position), 0)
UNION ALL
SELECT 'a transaction has no entry in the log', transaction_id::text
FROM ledger_mgr.transactions t, mine
WHERE t.tenant_id = tenant
  AND NOT EXISTS (SELECT FROM ledger_mgr.log l WHERE l.tenant_id = tenant AND l.position = t.position)
UNION ALL
SELECT 'a transaction was not told', transaction_id::text
FROM ledger_mgr.transactions t, mine
WHERE t.tenant_id = tenant
  AND NOT EXISTS (SELECT FROM ledger_mgr.events e WHERE e.tenant_id = tenant AND e.aggregate = t.transaction_id::text)
