-- What is wrong with the orders of the tenant $1, now that they have all come to rest: no rows when all is well.
-- Shares no code with any service; looks at each one's rows, and at the books of the sandbox, where the money is.
WITH mine AS (
    SELECT $1::text AS tenant
), orders AS (
    SELECT order_id, 'order/' || order_id AS reference, state, version, captured, refunded, currency,
           (folded->>'total')::bigint AS total, (folded->>'tax')::bigint AS tax,
           jsonb_array_length(folded->'parcels') AS parcels, (folded->>'reservation_id') AS reservation_id,
           state IN ('CONFIRMED', 'PARTIALLY_FULFILLED', 'FULFILLED') AS paid, state = 'CANCELLED' AS cancelled
    FROM puabo_nuki_order_processor.orders, mine WHERE tenant_id = tenant
), happened AS (
    SELECT order_id, count(*) AS events, max(version) AS last, min(version) AS first
    FROM puabo_nuki_order_processor.order_events, mine WHERE tenant_id = tenant GROUP BY order_id
), charges AS (
    SELECT p.reference, count(*) FILTER (WHERE c.state = 'captured') AS charged,
           count(*) FILTER (WHERE c.state IN ('authorized', 'requires_action')) AS reserved
    FROM billing_service.sandbox_charges c, billing_service.payments p, mine
    WHERE c.tenant_id = tenant AND p.tenant_id = tenant AND p.provider_payment_id = c.charge_id GROUP BY p.reference
), payments AS (
    SELECT reference, sum(captured)::bigint AS captured, sum(refunded)::bigint AS refunded,
           count(*) FILTER (WHERE captured > 0) AS charged,
           count(*) FILTER (WHERE state IN ('PENDING', 'REQUIRES_ACTION', 'AUTHORIZED')) AS hanging
    FROM billing_service.payments, mine WHERE tenant_id = tenant GROUP BY reference
), invoices AS (
    SELECT i.reference, i.invoice_id, i.total, b.credited
    FROM invoice_gen.invoices i JOIN invoice_gen.balances b USING (tenant_id, invoice_id), mine
    WHERE i.tenant_id = tenant AND i.kind = 'INVOICE' AND i.state = 'FINALIZED'
), labels AS (
    SELECT order_id, count(*) FILTER (WHERE state = 'LABEL_BOUGHT') AS bought,
           count(*) FILTER (WHERE state IN ('BUYING', 'VOIDING')) AS hanging
    FROM puabo_nuki_shipping_service.shipments, mine WHERE tenant_id = tenant GROUP BY order_id
), reservations AS (
    SELECT reference, count(*) FILTER (WHERE state = 'active') AS active,
           count(*) FILTER (WHERE state = 'committed') AS committed,
           coalesce(sum(out) FILTER (WHERE state = 'committed'), 0) AS units_out
    FROM puabo_nuki_inventory_mgr.reservations r
    JOIN (SELECT reservation_id, sum(quantity - restocked) AS out FROM puabo_nuki_inventory_mgr.allocations
          GROUP BY reservation_id) a USING (reservation_id), mine
    WHERE r.tenant_id = tenant GROUP BY reference
), booked AS (
    SELECT t.metadata->>'order_id' AS order_id, count(*) AS sales
    FROM ledger_mgr.transactions t, mine WHERE t.tenant_id = tenant AND t.reference LIKE 'order/%/sale' GROUP BY 1
), levels AS (
    SELECT l.item_id, l.location_id, l.on_hand, l.reserved,
           (SELECT coalesce(sum(quantity), 0) FROM puabo_nuki_inventory_mgr.movements m
            WHERE m.tenant_id = tenant AND m.item_id = l.item_id AND m.location_id = l.location_id) AS moved,
           (SELECT coalesce(sum(quantity), 0) FROM puabo_nuki_inventory_mgr.allocations a
            JOIN puabo_nuki_inventory_mgr.reservations r USING (reservation_id)
            WHERE a.tenant_id = tenant AND a.item_id = l.item_id AND a.location_id = l.location_id
              AND r.state = 'active') AS held
    FROM puabo_nuki_inventory_mgr.stock_levels l, mine WHERE tenant_id = tenant
)
SELECT 'an order has not come to rest' AS problem, order_id || ' ' || state AS place FROM orders
WHERE NOT paid AND NOT cancelled AND state NOT IN ('OPEN', 'PAYMENT_DECLINED', 'ACTION_REQUIRED')
UNION ALL
SELECT 'an event is missing', o.order_id::text FROM orders o LEFT JOIN happened h USING (order_id)
WHERE (h.events, h.first, h.last) IS DISTINCT FROM (o.version::bigint, 1, o.version)
UNION ALL
SELECT 'a customer was charged twice', o.order_id::text
FROM orders o LEFT JOIN payments p USING (reference) LEFT JOIN charges c USING (reference)
WHERE coalesce(p.charged, 0) > 1 OR coalesce(c.charged, 0) > 1
UNION ALL
SELECT 'the money taken is not what the order says', o.order_id || ' ' || coalesce(p.captured, 0)
FROM orders o LEFT JOIN payments p USING (reference)
WHERE o.captured <> coalesce(p.captured, 0) OR o.refunded <> coalesce(p.refunded, 0)
UNION ALL
SELECT 'a paid order is not paid', order_id::text FROM orders WHERE paid AND captured <> total
UNION ALL
SELECT 'a cancelled order kept money', order_id::text FROM orders WHERE cancelled AND captured <> refunded
UNION ALL
SELECT 'money is still reserved', o.order_id::text
FROM orders o LEFT JOIN payments p USING (reference) LEFT JOIN charges c USING (reference)
WHERE (paid OR cancelled) AND (coalesce(p.hanging, 0) > 0 OR coalesce(c.reserved, 0) > 0)
UNION ALL
SELECT 'the labels are not right', o.order_id::text FROM orders o LEFT JOIN labels l ON l.order_id = o.order_id::text
WHERE coalesce(l.hanging, 0) > 0 OR coalesce(l.bought, 0) <> CASE WHEN paid THEN parcels ELSE 0 END
UNION ALL
SELECT 'the stock of a paid order is not committed', o.order_id::text FROM orders o LEFT JOIN reservations r USING (reference)
WHERE paid AND (coalesce(r.committed, 0) <> 1 OR r.active > 0)
UNION ALL
SELECT 'the stock of a cancelled order is not free', o.order_id::text
FROM orders o JOIN reservations r USING (reference) WHERE cancelled AND (r.active > 0 OR r.units_out > 0)
UNION ALL
SELECT 'the invoice is not right', o.order_id::text
FROM orders o LEFT JOIN (SELECT reference, count(*) AS invoices, sum(total - credited) AS standing, sum(total) AS total
                         FROM invoices GROUP BY reference) i USING (reference)
WHERE (paid AND (coalesce(i.invoices, 0) <> 1 OR i.total <> o.total OR i.standing <> o.captured - o.refunded))
   OR (cancelled AND coalesce(i.standing, 0) <> 0)
UNION ALL
SELECT 'an invoice number is missing', series FROM invoice_gen.invoices, mine
WHERE tenant_id = tenant AND number IS NOT NULL GROUP BY series, series_year
HAVING count(*) <> max(series_number) OR count(DISTINCT series_number) <> count(*)
UNION ALL
SELECT 'a paid order is not booked once', o.order_id::text
FROM orders o LEFT JOIN booked b ON b.order_id = o.order_id::text WHERE paid AND total > 0 AND coalesce(b.sales, 0) <> 1
UNION ALL
SELECT 'stock does not add up', item_id FROM levels WHERE on_hand <> moved OR reserved <> held OR on_hand < reserved;
