"""Make the users whom tests/providers/aws.rs knows, at the moto server whose address is given, and print their keys.

The server lets in as many unsigned requests as there are here (three for each user), and after that only who may.
"""

import json
import sys
import time
import urllib.request

import boto3

endpoint = sys.argv[1]
for _ in range(150):
    try:
        # Not a request to any of the services, so that it is not counted.
        urllib.request.urlopen(endpoint + "/moto-api/data.json", timeout=2)
        break
    except OSError:
        time.sleep(0.2)
else:
    sys.exit("the moto server does not answer")

users = {
    # Whoever opens a store, and administers its keys.
    "OWNER": ["kms:*"],
    # Can make tables, and not read them.
    "WRITER": ["kms:DescribeKey", "kms:GenerateDataKey"],
    "NOBODY": ["s3:GetObject"],
}
iam = boto3.client(
    "iam", endpoint_url=endpoint, region_name="eu-central-1", aws_access_key_id="none", aws_secret_access_key="none"
)
for name, actions in users.items():
    iam.create_user(UserName=name)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    print(f"STRONGROOM_KMS_{name}={key['AccessKeyId']}:{key['SecretAccessKey']}")
