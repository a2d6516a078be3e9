# Who may do what in the bucket. Nobody here may delete a model, a shard or what DVC stores.

# People and services that use models and data.
data "aws_iam_policy_document" "reader" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.memoir.arn]
  }

  statement {
    sid       = "Read"
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.memoir.arn}/*"]
  }
}

# The nodes of a cluster, beside reading: checkpoints, of which old ones are removed; shards; models.
data "aws_iam_policy_document" "trainer" {
  statement {
    sid       = "Checkpoints"
    actions   = ["s3:PutObject", "s3:DeleteObject"]
    resources = ["${aws_s3_bucket.memoir.arn}/runs/*"]
  }

  statement {
    sid       = "Publish"
    actions   = ["s3:PutObject"]
    resources = ["${aws_s3_bucket.memoir.arn}/models/*", "${aws_s3_bucket.memoir.arn}/shards/*"]
  }
}

# People who bring data, beside what a trainer may: datasets and `dvc push`, whose large files go in parts.
data "aws_iam_policy_document" "builder" {
  statement {
    sid     = "Data"
    actions = ["s3:PutObject", "s3:AbortMultipartUpload"]
    resources = [
      "${aws_s3_bucket.memoir.arn}/data/*",
      "${aws_s3_bucket.memoir.arn}/dvc/*",
      "${aws_s3_bucket.memoir.arn}/vgg19-dcbb9e9d.pth",
    ]
  }
}

resource "aws_iam_policy" "reader" {
  name   = "memoir-reader"
  policy = data.aws_iam_policy_document.reader.json
}

resource "aws_iam_policy" "trainer" {
  name   = "memoir-trainer"
  policy = data.aws_iam_policy_document.trainer.json
}

resource "aws_iam_policy" "builder" {
  name   = "memoir-builder"
  policy = data.aws_iam_policy_document.builder.json
}

# The role of the nodes: EKS Pod Identity gives it to the pods, an instance profile to VMs.
data "aws_iam_policy_document" "nodes" {
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]

    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com", "ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "trainer" {
  name               = "memoir-trainer"
  assume_role_policy = data.aws_iam_policy_document.nodes.json
}

resource "aws_iam_role_policy_attachment" "trainer" {
  for_each   = { reader = aws_iam_policy.reader.arn, trainer = aws_iam_policy.trainer.arn }
  role       = aws_iam_role.trainer.name
  policy_arn = each.value
}

resource "aws_iam_instance_profile" "trainer" {
  name = "memoir-trainer"
  role = aws_iam_role.trainer.name
}
