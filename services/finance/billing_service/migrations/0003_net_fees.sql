-- What a coupon has taken off the fee of the current period. `period_fee` is without it: what was not paid is not
-- given back when a subscription changes or ends.
ALTER TABLE subscriptions ADD COLUMN period_discount bigint NOT NULL DEFAULT 0;

UPDATE subscriptions s SET period_discount = least(taken.off, s.period_fee),
                           period_fee = s.period_fee - least(taken.off, s.period_fee)
FROM (
    SELECT b.tenant_id, b.subscription_id, b.cycle_start, -sum(l.amount)::bigint AS off
    FROM bills b JOIN bill_lines l USING (tenant_id, bill_id)
    WHERE l.kind = 'DISCOUNT' GROUP BY b.tenant_id, b.subscription_id, b.cycle_start
) taken
WHERE taken.tenant_id = s.tenant_id AND taken.subscription_id = s.subscription_id
  AND taken.cycle_start = s.period_start;
