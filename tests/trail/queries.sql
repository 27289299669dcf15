-- The four queries that the documentation of the modelled service gives for its trail, over the files that a store writes.
--
-- Their literals are ours: the store's name as source of events and of requests, the key service's name, the path to the table in the encryption
-- context, the ARN. Their meaning is unchanged. The first statement does what CREATE EXTERNAL TABLE and ADD PARTITION do there: it names CloudTrail's
-- columns, and takes year, month and day from the folders, so that a query for a day reads that day's files alone.
--
-- tests/trail/query.py runs them; {folder}, {year}, {month}, {day}, {table} and {key} stand for what is asked for.

-- name: view
CREATE MACRO JSON_EXTRACT_SCALAR(json, path) AS json_extract_string(json, path);
CREATE VIEW cloudtrail_logs AS
SELECT * EXCLUDE (filename),
       parse_path(filename)[-4] AS year, parse_path(filename)[-3] AS month, parse_path(filename)[-2] AS day
FROM read_json('{folder}/*/*/*/*.jsonl', format = 'newline_delimited', filename = true, columns = {
    eventVersion: 'VARCHAR',
    userIdentity: 'STRUCT(type VARCHAR, principalId VARCHAR, arn VARCHAR, invokedBy VARCHAR)',
    eventTime: 'VARCHAR',
    eventSource: 'VARCHAR',
    eventName: 'VARCHAR',
    awsRegion: 'VARCHAR',
    sourceIPAddress: 'VARCHAR',
    userAgent: 'VARCHAR',
    errorCode: 'VARCHAR',
    errorMessage: 'VARCHAR',
    requestParameters: 'JSON',
    responseElements: 'JSON',
    additionalEventData: 'JSON',
    requestID: 'VARCHAR',
    eventID: 'VARCHAR',
    resources: 'STRUCT(ARN VARCHAR, type VARCHAR)[]',
    eventType: 'VARCHAR',
    readOnly: 'BOOLEAN',
    recipientAccountId: 'VARCHAR'
});

-- name: calls of tables on a day
SELECT * FROM cloudtrail_logs
WHERE year='{year}' AND month='{month}' AND day='{day}'
AND eventsource = 'strongroom'
LIMIT 1000;

-- name: requests for keys that the store made on a day
SELECT eventtime, eventname, sourceipaddress, useridentity, requestparameters FROM cloudtrail_logs
WHERE year='{year}' AND month='{month}' AND day='{day}'
AND eventsource = 'kms.strongroom'
AND sourceipaddress = 'strongroom'
LIMIT 1000;

-- name: requests for keys for one table, in the order of time
SELECT eventtime, eventname, sourceipaddress, useridentity, requestparameters FROM cloudtrail_logs
WHERE year='{year}' AND month='{month}' AND day='{day}'
AND eventsource = 'kms.strongroom'
AND sourceipaddress = 'strongroom'
AND REPLACE(JSON_EXTRACT_SCALAR(requestparameters, '$.encryptionContext."strongroom:table"'),'"','') = '{table}'
ORDER BY eventtime
LIMIT 1000;

-- name: tables that use a key
SELECT eventtime, eventname, REPLACE(JSON_EXTRACT_SCALAR(requestparameters, '$.encryptionContext."strongroom:table"'),'"','') as ddbtbl FROM cloudtrail_logs
WHERE year='{year}' AND month='{month}' AND day='{day}'
AND eventsource = 'kms.strongroom'
AND sourceipaddress = 'strongroom'
AND resources[1].arn = '{key}'
ORDER BY ddbtbl
LIMIT 1000;

-- name: how many of each kind
SELECT eventsource, eventname, count(*) AS calls, count(errorcode) AS failed FROM cloudtrail_logs
GROUP BY ALL ORDER BY ALL;
